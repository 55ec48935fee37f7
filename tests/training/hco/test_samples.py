"""What the LLM is trained on is what it is shown in use; forms, ablations, and first rounds of its own."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.graph.fakes import FakeCT
from tests.graph.test_loop import QUESTION
from tests.graph.test_loop import run as run_graph
from tests.training.hco import tiny
from tumorchain_agent.graph.prompts import TextPart, conversation
from tumorchain_agent.graph.state import IIRConfig
from tumorchain_agent.model.generate import Sampling
from tumorchain_agent.model.template import IGNORED_LABEL, Message, flat_ids, render
from tumorchain_agent.model.tokenizer import build_nano_tokenizer
from tumorchain_agent.model.wording import WITHOUT_COT, WITHOUT_IIR
from tumorchain_agent.records import OrganEvidence, Round, ScanInfo, TokenSet
from tumorchain_agent.tools.roi import mean_mixture
from tumorchain_agent.training.data.policy import BadSample, Reason
from tumorchain_agent.training.data.record import CoTSample
from tumorchain_agent.training.hco.build import build
from tumorchain_agent.training.hco.config import Form
from tumorchain_agent.training.hco.own import first_rounds
from tumorchain_agent.training.hco.rows import Evidence, encode
from tumorchain_agent.training.hco.samples import Item, of_phantom, of_record, turns, with_own_first_round
from tumorchain_agent.training.hco.scans import ScanData, VolumeCache
from tumorchain_agent.training.hco.sources import PhantomSource, load
from tumorchain_agent.training.hco.trainer import train
from tumorchain_agent.training.modes import MODES
from tumorchain_agent.training.phantom.volume import make_pool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXTS = ("The liver and the esophagus need a closer look.", "The spleen needs a closer look.")
ITEM = Item(
    name="P-1/1",
    task="position",
    question="Is there a tumor?",
    organs=((), ("liver", "esophagus"), ("spleen",)),
    texts=(*TEXTS, "Findings: no mass. Impression: no tumor. Answer: no tumor."),
    answer="Answer: no tumor.",
    caption="Findings: no mass.",
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_nano_tokenizer([ITEM.question, *ITEM.texts], vocabulary=300)


@pytest.fixture
def coverage(rng: np.random.Generator) -> dict[str, Any]:
    """A liver with so many patches that its tokens are pooled, and a spleen; no esophagus."""
    liver, spleen = np.zeros((2, 8, 16, 16), np.float32)
    liver[2:6, 4:12, 3:9] = rng.uniform(0.1, 1, (4, 8, 6))
    spleen[3, 8:10, 9:12] = 0.5
    return {"liver": liver, "spleen": spleen}


def token_set(organ: str | None, count: int) -> TokenSet:
    return TokenSet(uri="tokens://x", scan_id="x", organ=organ, count=count, hidden_size=4, checkpoint_id="x")


def test_the_collators_ids_are_those_of_the_graphs_messages(
    coverage: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    ours = encode(ITEM.name, turns(ITEM, "cot", coverage), coverage, tokenizer)
    evidence = []
    for organ in ("liver", "esophagus", "spleen"):
        tokens = None
        if organ in coverage:
            tokens = token_set(organ, Evidence(organ).mixture(coverage).count)
        there = organ in coverage
        evidence.append(
            OrganEvidence(organ=organ, asked_as=organ, present=there, kind="tokens", tokens=tokens)
        )
    rounds = [
        Round(index=1, prompt="", text=ITEM.texts[0]),
        Round(index=2, prompt="", text=ITEM.texts[1], evidence=tuple(evidence[:2])),
    ]
    scan = ScanInfo.model_construct()
    shown = conversation(IIRConfig(), ITEM.question, scan, token_set(None, 256), rounds, evidence[2:])
    messages = [
        Message(
            t.role, tuple(p.text if isinstance(p, TextPart) else torch.zeros(_count(p), 4) for p in t.parts)
        )
        for t in shown
    ]
    prompt = flat_ids(render(messages, tokenizer, add_generation_prompt=True), placeholder=0)
    answer = tokenizer.encode(ITEM.texts[-1] + "<|im_end|>\n", add_special_tokens=False)
    assert ours.ids.tolist() == prompt + answer
    assert ours.labels[len(prompt) :].tolist()[:-1] == answer[:-1]


def _count(part: object) -> int:
    return int(getattr(part, "count"))  # noqa: B009


def test_every_case_of_an_organ_reads_as_the_graph_tells_it(coverage: dict[str, Any]) -> None:
    ct = FakeCT(
        absent=("esophagus", "duodenum"),
        unknown=("duodenum",),
        cut={"spleen": ("left",)},
        tokenless=("stomach", "urinary_bladder"),
    )
    replies = ["The liver, the spleen, the esophagus and the stomach.", "Bladder and duodenum.", "Nothing."]
    _, model = run_graph(replies, ct=ct)
    organs = ((), ("liver", "spleen", "esophagus", "stomach"), ("urinary_bladder", "duodenum"))
    item = replace(ITEM, question=QUESTION, texts=tuple(replies), organs=organs)
    present = {"liver", "spleen", "stomach", "urinary_bladder"}
    ours = [
        ("ai" if turn.role == "assistant" else "human", [_short(part) for part in turn.parts])
        for turn in turns(item, "cot", coverage, present=present)
    ]
    assert ours[:-1] == model.said[-1]


def _short(part: str | Evidence) -> str:
    if isinstance(part, str):
        return part
    return "<τ_g>" if part.organ is None else f"<τ_l {part.organ}>"


def test_forms_show_and_say_what_their_names_tell(coverage: dict[str, Any]) -> None:
    def said(form: Form) -> tuple[list[str], list[str | None]]:
        found = turns(ITEM, form, coverage)
        texts = [str(t.parts[0]) for t in found if t.role == "assistant"]
        organs = [p.organ for t in found for p in t.parts if isinstance(p, Evidence)]
        return texts, organs

    everything: list[str | None] = [None, "liver", "spleen"]
    assert said("cot") == (list(ITEM.texts), everything)
    assert said("instruct") == ([*TEXTS, ITEM.answer], everything)
    assert said("align") == ([ITEM.caption], everything)


def test_a_record_is_told_in_each_mode() -> None:
    record = CoTSample.model_validate(tiny.lines("P-1", "train")[0])
    organs = {organ: np.ones((8, 16, 16), np.float32) for round in record.rounds for organ in round.organs}
    scan = ScanData("s", None, organs, frozenset(organs))
    items = {name: of_record(record, scan, mode) for name, mode in MODES.items()}
    asked = {name: item.question for name, item in items.items() if isinstance(item, Item)}
    assert asked == {
        "full": record.prompt,
        "without_iir": f"{record.prompt} {WITHOUT_IIR}",
        "without_cot": f"{record.prompt} {WITHOUT_COT}",
        "without_both": f"{record.prompt} {WITHOUT_IIR} {WITHOUT_COT}",
    }
    told = {name: item.texts for name, item in items.items() if isinstance(item, Item)}
    assert told == {
        "full": record.texts,
        "without_iir": record.texts[-1:],
        "without_cot": (*record.texts[:-1], record.conclusion),
        "without_both": (record.conclusion,),
    }


def test_a_phantom_in_a_mode_is_answered_as_in_full(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool", 2, 0, workers=1)
    scan = load(PhantomSource(tmp_path / "pool", 4, 0, VolumeCache(tmp_path)), 1)
    assert isinstance(scan, ScanData)
    for pick in range(6):
        items = {name: of_phantom(scan, [0, pick], None, "p", mode) for name, mode in MODES.items()}
        assert {item.answer for item in items.values()} == {items["full"].answer}
        assert len(items["full"].texts) == len(items["without_cot"].texts) > 1
        assert len(items["without_iir"].texts) == len(items["without_both"].texts) == 1
        for item in items.values():
            assert item.texts[-1].endswith(item.answer)
        without_cot = items["without_cot"]
        own = with_own_first_round(without_cot, "The liver needs a closer look.")
        assert own.texts[-1] == without_cot.answer


def test_a_first_round_of_its_own_leads_where_it_looked_and_then_to_what_it_missed(
    coverage: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    own = with_own_first_round(ITEM, "The spleen and the colon need a closer look.")
    assert own.organs == ((), ("spleen", "colorectum"), ("liver", "esophagus"))
    assert own.texts[1] == "The liver and the esophagus need a closer look."
    assert own.texts[2] == ITEM.texts[-1]
    encoded = encode("own", turns(own, "cot", coverage), coverage, tokenizer)
    kept = tokenizer.decode(encoded.labels[encoded.labels != IGNORED_LABEL])
    assert kept == "".join(f"{text}<|im_end|>" for text in own.texts[1:])
    found_all = with_own_first_round(ITEM, "The spleen, the liver and the esophagus.")
    assert found_all.organs == ((), ("spleen", "liver", "esophagus"))
    assert len(found_all.texts) == 2
    assert with_own_first_round(ITEM, "Nothing to see.") is ITEM


def test_after_its_own_first_round_come_the_questions_organs_and_then_those_it_names_as_in_the_graph() -> (
    None
):
    item = replace(
        ITEM, question="Is there a tumor in the spleen?", texts=ITEM.texts[1:], organs=((), ("spleen",))
    )
    own = with_own_first_round(item, "The liver needs a closer look.")
    _, model = run_graph([own.texts[0], "Nothing."], question=item.question)
    assert own.organs == ((), ("spleen", "liver"))
    shown = [part for part in model.said[1][-1][1] if part.startswith("<")]
    assert shown == ["<τ_l spleen>", "<τ_l liver>"]


def test_a_phantoms_truth_is_told_of_the_organs_that_were_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pool(tmp_path / "pool", 2, 0, workers=1)
    source = PhantomSource(tmp_path / "pool", 4, 0, VolumeCache(tmp_path))
    key = source.key(1)
    with monkeypatch.context() as other:
        other.setattr("tumorchain_agent.training.hco.sources.GENERATOR", 0)
        assert source.key(1) != key, "a cached phantom of another generator is not found"
    scan = load(source, 1)
    assert isinstance(scan, ScanData)
    again = load(source, 1)
    assert isinstance(again, ScanData)
    assert again.volume is not None
    assert scan.volume is not None
    assert torch.equal(scan.volume, again.volume)
    for pick in range(12):
        item, same = (of_phantom(each, [0, pick], None, "p") for each in (scan, again))
        assert (item.texts, item.organs) == (same.texts, same.organs)
        shown = [organ for organs in item.organs for organ in organs]
        assert item.retell is not None
        assert item.retell(shown) == item.texts[-1]
        own = with_own_first_round(item, "The liver needs a closer look.")
        assert own.organs[1] == ("liver",)
        assert {o for organs in own.organs for o in organs} == {"liver", *shown}
        assert own.texts[-1].endswith(item.answer)


def test_what_presupposes_a_tumor_is_seldom_asked_of_healthy_phantoms_and_often_of_others(
    tmp_path: Path,
) -> None:
    make_pool(tmp_path / "pool", 2, 0, workers=1)
    for diseases, least, most in (((1.0,), 0.02, 0.15), ((0.0, 1.0), 0.3, 0.6)):
        source = PhantomSource(tmp_path / "pool", 1, 0, VolumeCache(tmp_path), diseases)
        scan = load(source, 0)
        assert isinstance(scan, ScanData)
        items = [of_phantom(scan, [0, pick], None, "p") for pick in range(300)]
        tasks = Counter(item.task for item in items)
        assert least < (tasks["lesion"] + tasks["tnm"]) / 300 < most, tasks


def test_a_share_of_the_healthy_patients_is_asked_in_turns_and_the_ill_ones_in_every_epoch(
    tmp_path: Path,
) -> None:
    make_pool(tmp_path / "pool", 2, 0, workers=1)
    cache = VolumeCache(tmp_path)
    healthy = {
        scan
        for scan in range(10)
        if not (PhantomSource(tmp_path / "pool", 10, 0, cache).whole(scan).truth or {})["organ"]
    }
    assert 2 <= len(healthy) <= 8
    source = PhantomSource(tmp_path / "pool", 10, 0, cache, healthy=0.5)
    epochs = [[unit.scan for unit in source.units(epoch, 2)] for epoch in range(4)]
    for asked in epochs:
        assert {*range(10)} - healthy <= {*asked}
        assert len(asked) == len({*asked}) == 10 - len(healthy) + round(0.5 * len(healthy))
    assert {scan for asked in epochs for scan in asked} == {*range(10)}
    picks = [pick for epoch in range(4) for unit in source.units(epoch, 2) for pick in unit.picks]
    assert len(picks) == len({*picks})


def test_an_organ_that_the_label_map_lacks_is_a_bad_sample_by_name() -> None:
    sample = CoTSample.model_validate(tiny.lines("P-1", "train")[0])
    organ = sample.rounds[1].organs[0]
    found = of_record(sample, ScanData("s", None, {}, frozenset({"stomach"})))
    assert isinstance(found, BadSample)
    assert (found.sample, found.reason) == ("P-1/0", Reason.ORGAN_LACKING)
    assert organ in found.message


def test_an_organ_is_not_said_to_be_missing_where_no_label_map_tells() -> None:
    sample = CoTSample.model_validate(tiny.lines("P-1", "train")[0])
    found = of_record(sample, ScanData("s", None, {}, None))
    assert isinstance(found, BadSample)
    assert (found.sample, found.reason) == ("P-1/0", Reason.MISSING_LABEL_MAP)
    told = sample.rounds[1].model_copy(update={"absent": sample.rounds[1].organs})
    absent = sample.model_copy(update={"rounds": (sample.rounds[0], told)})
    assert isinstance(of_record(absent, ScanData("s", None, {}, None)), Item)


def test_the_models_first_round_is_what_it_says_to_the_graphs_first_message(
    records: Path, tmp_path: Path
) -> None:
    run = build(tiny.config(records, stage={"steps": 1}), tmp_path / "out")
    train(tiny.steps_only(run))
    tokens = torch.randn(2048, 16, generator=torch.Generator().manual_seed(0))
    samplings = [Sampling(0.0, 1.0, 8), Sampling(0.0, 1.0, 8)]
    both = first_rounds(run.model, run.tokenizer, tokens, ["One?", "Two?"], samplings)
    alone = first_rounds(run.model, run.tokenizer, tokens, ["Two?"], samplings[:1])
    assert both[1] == alone[0] == _greedy(run, tokens, "Two?", 8)


def _greedy(run: Any, tokens: Tensor, question: str, length: int) -> str:
    """Token by token without a cache, over the template."""
    from tumorchain_agent.model.template import to_inputs
    from tumorchain_agent.tools.roi import global_pool

    model = run.model.eval()
    with torch.no_grad():
        evidence = model.tower.project(global_pool(tokens))
        pieces = render([Message("user", (evidence, question))], run.tokenizer, add_generation_prompt=True)
        inputs = to_inputs(pieces, model.llm.get_input_embeddings())
        said: list[int] = []
        for _ in range(length):
            token = int(model.llm(inputs_embeds=inputs).logits[0, -1].argmax())
            if token in (run.tokenizer.eos_token_id, run.tokenizer.pad_token_id):
                break
            said.append(token)
            row = model.llm.get_input_embeddings()(torch.tensor([[token]]))
            inputs = torch.cat([inputs, row], dim=1)
    return str(run.tokenizer.decode(said, skip_special_tokens=True)).strip()


def test_suspicion_is_what_cls_says_of_the_cached_tokens(tmp_path: Path) -> None:
    from tumorchain_agent.training.hco.batches import Loaded
    from tumorchain_agent.training.hco.feeder import Feeder
    from tumorchain_agent.training.hco.sources import Unit

    tokens = torch.randn(2048, 4, generator=torch.Generator().manual_seed(1))
    share = np.zeros((8, 16, 16), np.float32)
    share[2, 3, 4:7] = 0.5
    cls = torch.nn.Linear(4, 2)
    feeder = Feeder.__new__(Feeder)
    feeder.config = SimpleNamespace(data=SimpleNamespace(phantoms=SimpleNamespace(suspicion="cls")))  # type: ignore[assignment]
    feeder.model = SimpleNamespace(tower=SimpleNamespace(cls=cls, classify=cls))  # type: ignore[assignment]
    scan = ScanData("s", None, {"liver": share, "spleen": share})
    found = feeder._suspicion(Loaded(0, Unit(0, (0,)), "k", scan, (), tokens))
    mean = mean_mixture(share).of(tokens)
    assert found is not None
    assert list(found) == ["liver"]
    assert found["liver"] == pytest.approx(cls(mean).softmax(-1)[0, 1].item())
