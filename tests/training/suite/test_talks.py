"""The runner says what the graph says, round by round; and what it is shown can be taken away or exchanged."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
import torch
from mcp import Client

from tumorchain_agent.graph.client import CTTools
from tumorchain_agent.graph.run import ask
from tumorchain_agent.mcp_server.server import build_server
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.model.chat import chat_model_from
from tumorchain_agent.model.checkpoint import NANO_DIR
from tumorchain_agent.model.generate import Decoder, Sampling, TextStream
from tumorchain_agent.model.template import Message, render
from tumorchain_agent.model.wording import in_mode
from tumorchain_agent.records import Answer
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.preprocess import Preprocessing
from tumorchain_agent.tools.zoom import Zoom
from tumorchain_agent.training.phantom.export import save_nifti
from tumorchain_agent.training.phantom.render import to_stored
from tumorchain_agent.training.seeds import HELD_OUT_SEED
from tumorchain_agent.training.suite.beside import Beside
from tumorchain_agent.training.suite.patients import Making, Scanned, scans_of, view
from tumorchain_agent.training.suite.talks import (
    Asker,
    Blank,
    EncodedScan,
    Swapped,
    Talk,
    Unzoomed,
)

QUESTIONS = (
    "Is there a tumor, and in which organ?",
    "Is there a tumor in the spleen or the esophagus?",
    "TNM stage?",
)
SHORT = in_mode("TNM stage?", iir=False)


MAKING = Making(Preprocessing(), (2.0, 2.0, 6.0))


def nano_with(zoom: Zoom | None, folder: Path) -> Path:
    """nano, which says that it zooms so; how it was trained doesn't matter here."""
    shutil.copytree(NANO_DIR, folder / "nano")
    info = json.loads((folder / "nano/tumorchain.json").read_text())
    info["zoom"] = None if zoom is None else zoom.model_dump(mode="json")
    (folder / "nano/tumorchain.json").write_text(json.dumps(info))
    return folder / "nano"


@pytest.fixture(scope="module")
def zooming(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nano_with(Zoom(organs=("liver", "pancreas", "esophagus")), tmp_path_factory.mktemp("zooming"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nano_with(None, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def asker(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Asker:
    return Asker(Settings(cache_dir=tmp_path_factory.mktemp("cache"), model=plain))


@pytest.fixture(scope="module")
def scanned() -> list[Scanned]:
    return [scans_of(HELD_OUT_SEED + k, MAKING)[0] for k in (0, 4)]


@pytest.fixture(scope="module")
def scans(asker: Asker, scanned: list[Scanned]) -> list[EncodedScan]:
    return [asker.encode(view(each, MAKING)) for each in scanned]


def through_the_graph(scanned: list[Scanned], folder: Path, model: Path) -> list[Answer]:
    async def scenario() -> list[Answer]:
        settings = Settings(cache_dir=folder / "cache", model=model)
        chat_model = chat_model_from(settings)
        found = []
        with closing(Workbench(settings)) as workbench:
            async with Client(build_server(workbench)) as client:
                for each in scanned:
                    scan, labels = folder / f"{each.truth.seed}.nii.gz", folder / "labels.nii.gz"
                    save_nifti(to_stored(each.ct.hu), each.ct.affine, scan)
                    save_nifti(each.labels, each.ct.affine, labels)
                    for question, rounds in [*((q, 8) for q in QUESTIONS), (SHORT, 1)]:
                        found.append(
                            await ask(
                                CTTools(client),
                                chat_model,
                                str(scan),
                                question,
                                masks=str(labels),
                                max_rounds=rounds,
                                checkpoint_db=None,
                            )
                        )
        return found

    return anyio.run(scenario)


@pytest.mark.slow
def test_rounds_are_those_of_the_graph_over_mcp(
    asker: Asker, plain: Path, scanned: list[Scanned], scans: list[EncodedScan], tmp_path: Path
) -> None:
    answers = through_the_graph(scanned, tmp_path, plain)
    talks = [Talk(scan, *asked) for scan in scans for asked in [*((q, 8) for q in QUESTIONS), (SHORT, 1)]]
    asker.answer(talks)
    assert any(len(talk.rounds) > 1 for talk in talks)
    assert any("spleen" in organs for talk in talks for organs in talk.organs)
    for talk, answer in zip(talks, answers, strict=True):
        assert talk.question == answer.question
        assert talk.texts == tuple(record.text for record in answer.rounds)
        shown = tuple(tuple(each.organ for each in record.evidence) for record in answer.rounds)
        assert talk.organs == shown


@pytest.mark.slow
def test_rounds_with_zoom_are_those_of_the_graph_over_mcp(
    zooming: Path, scanned: list[Scanned], tmp_path: Path
) -> None:
    asker = Asker(Settings(cache_dir=tmp_path, model=zooming))
    answers = through_the_graph(scanned[:1], tmp_path, zooming)
    scan = asker.encode(view(scanned[0], replace(MAKING, zoom=asker.served.zoom())))
    talks = [Talk(scan, *asked) for asked in [*((q, 8) for q in QUESTIONS), (SHORT, 1)]]
    asker.answer(talks)
    assert [talk.texts for talk in talks] == [tuple(r.text for r in answer.rounds) for answer in answers]
    shown = {each.organ: each.tokens for answer in answers for r in answer.rounds for each in r.evidence}
    assert any(tokens and tokens.zoom for tokens in shown.values()), "no examined organ was zoomed into"
    for organ, tokens in shown.items():
        closer = scan.zoomed(organ)
        assert (closer is None) is (tokens is None or tokens.zoom is None)
        if closer is not None and tokens is not None and tokens.zoom is not None:
            assert (len(closer.tokens), closer.side_mm) == (tokens.zoom.count, tokens.zoom.side_mm)


def test_crops_can_be_left_out_blanked_and_exchanged(
    zooming: Path, scanned: list[Scanned], tmp_path: Path
) -> None:
    asker = Asker(Settings(cache_dir=tmp_path, model=zooming))
    making = replace(MAKING, zoom=asker.served.zoom())
    first, second = (asker.encode(view(each, making)) for each in scanned)
    closer = first.zoomed("liver")
    assert closer is not None
    assert first.zoomed("stomach") is None
    assert Unzoomed(first).zoomed("liver") is None
    blank = Blank(first).zoomed("liver")
    assert blank is not None
    assert blank.tokens.shape == closer.tokens.shape
    assert not blank.tokens.any()
    swapped = Swapped(first, "liver", second)
    assert swapped.zoomed("liver") is second.zoomed("liver")
    assert swapped.zoomed("pancreas") is first.zoomed("pancreas")


def test_side_by_side_is_as_one_by_one(asker: Asker, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    whole = [0.3 * torch.randn(256, 192, generator=generator) for _ in range(3)]
    roi = [0.3 * torch.randn(20 * k + 1, 192, generator=generator) for k in range(3)]
    talks = [
        [
            Message("user", (whole[k % 3], "Is there a tumor?" if k % 2 else "TNM stage?")),
            Message("assistant", ("The liver needs a closer look." * (1 + k % 3),)),
            Message("user", ("The question requires greater attention to liver", roi[k // 3])),
        ][: 1 if k > 6 else 3]
        for k in range(9)
    ]
    prompts = [render(each, asker.tokenizer, add_generation_prompt=True) for each in talks]
    beside = Beside(asker.beside.llm, asker.tokenizer, max_tokens=40)
    replies = beside.generate(prompts)
    decoder = Decoder(asker.beside.llm, asker.tokenizer, 0)
    for prompt, reply in zip(prompts, replies, strict=True):
        generation = decoder.start(prompt, Sampling(max_tokens=40))
        stream = TextStream(asker.tokenizer)
        said = "".join(stream.push(token) for token in generation) + stream.finish()
        assert reply.text == said
        assert reply.tokens == generation.completion_tokens
        assert reply.cut_off is (generation.finish_reason == "length")


def test_a_blank_scan_shows_zeros_of_the_same_number(scans: list[EncodedScan]) -> None:
    blank, other = Blank(scans[0]), Blank(scans[1])
    assert blank.whole is other.whole
    assert not blank.whole.any()
    assert blank.roi("liver").shape == scans[0].roi("liver").shape
    assert not blank.roi("liver").any()
    swapped = Swapped(scans[0], "liver", scans[1])
    assert swapped.whole is scans[0].whole
    assert swapped.roi("liver") is scans[1].roi("liver")
    assert swapped.roi("stomach") is scans[0].roi("stomach")


def test_a_talk_ends_where_no_new_organ_is_named_or_no_round_is_left(scans: list[EncodedScan]) -> None:
    talk = Talk(scans[0], "Is there a tumor in the liver?", 3)
    talk.said("The pancreatic tail.")
    assert [each.organ for each in talk.shown] == ["liver", "pancreas"]
    assert not talk.over
    talk.said("The prostate, then.")
    present = "prostate" in scans[0].present
    assert [(each.organ, each.present) for each in talk.shown] == [("prostate", present)]
    talk.said("The stomach.")
    assert talk.over
    assert talk.organs == ((), ("liver", "pancreas"), ("prostate",))
    again = Talk(scans[0], "Tumor?", 8)
    again.said("No organ needs a closer look.")
    assert again.over
