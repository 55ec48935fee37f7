"""The graph over the real server: a small CT, a given label map, slices as evidence; no network needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import numpy as np
import pytest

from tests.conftest import torso, torso_grid
from tests.graph.fakes import ScriptedModel
from tumorchain_agent.errors import LabelMapError, ScanError
from tumorchain_agent.graph.client import CTTools, connect
from tumorchain_agent.graph.run import ask
from tumorchain_agent.graph.trace import trace_records
from tumorchain_agent.mcp_server.server import build_server
from tumorchain_agent.mcp_server.store import read_work_log
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.records import Answer, Measurement
from tumorchain_agent.settings import Settings

REPLIES = ["Look at the liver, the spleen and the esophagus.", "Liver: large. Esophagus: not in the scan."]


class Bench:
    """One CT with its label map, and servers that share a cache folder."""

    def __init__(self, ct: Path, masks: Path, cache: Path) -> None:
        self.ct, self.masks, self.settings = ct, masks, Settings(cache_dir=cache)

    def ask(
        self, model: ScriptedModel, *, masks: str | None = None
    ) -> tuple[Answer, list[bytes], list[Measurement]]:
        """The answer, what its claims' URIs hold, and all measurements; by a new server."""

        async def scenario() -> tuple[Answer, list[bytes], list[Measurement]]:
            with Workbench(self.settings) as workbench:
                async with connect(build_server(workbench)) as client:
                    tools = CTTools(client)
                    answer = await ask(
                        tools,
                        model,
                        str(self.ct),
                        "What is large?",
                        masks=masks or str(self.masks),
                        evidence="images",
                        checkpoint_db=self.settings.cache_dir / "threads.sqlite",
                    )
                    uris = dict.fromkeys(uri for claim in answer.claims for uri in claim.evidence_uris)
                    pictures = [await tools.read(uri) for uri in uris if uri.startswith("picture")]
                    measured = await tools.measure_organs(answer.scan.scan_id)
                    return answer, pictures, list(measured.measurements)

        return anyio.run(scenario)

    def work(self) -> list[str]:
        """What the servers really computed."""
        return [f"{entry['work']} {entry['parts']}" for entry in read_work_log(self.settings.cache_dir)]


@pytest.fixture
def bench(tmp_path: Path, write_nifti: Callable[..., Path]) -> Bench:
    affine, shape = torso_grid(6.0)
    hu, labels = torso(affine, shape)
    ct = write_nifti(hu, affine, "ct.nii.gz")
    return Bench(ct, write_nifti(labels, affine, "masks.nii.gz", np.uint8), tmp_path / "cache")


def test_slices_and_measurements_of_the_real_tools_reach_the_llm(bench: Bench) -> None:
    model = ScriptedModel(replies=REPLIES)
    answer, pictures, measurements = bench.ask(model)
    last = model.said[1][-1][1]
    assert last.count("<picture>") == 6
    assert last[-1] == "esophagus is not in the scan; not assessed\n"
    liver = next(each for each in measurements if each.organ == "liver")
    assert liver.volume_ml is not None
    assert f"volume {liver.volume_ml:.1f} ml" in last[1]
    assert answer.organs_examined == ("liver", "spleen")
    assert set(answer.organs_absent) == {"esophagus", "pancreas", "stomach", "colorectum"}
    assert len(pictures) == 3
    assert all(png.startswith(b"\x89PNG") for png in pictures)
    assert len(trace_records(answer, measurements)) > 56


def test_a_new_server_goes_on_where_the_old_one_was(bench: Bench) -> None:
    with pytest.raises(IndexError):
        bench.ask(ScriptedModel(replies=REPLIES[:1]))
    before = bench.work()
    model = ScriptedModel(replies=REPLIES[1:])
    answer, _, _ = bench.ask(model)
    after = bench.work()
    assert [record.text for record in answer.rounds] == REPLIES
    assert len(model.calls) == 1
    assert after[: len(before)] == before
    assert len(set(after)) == len(after)


def test_errors_of_the_real_tools_come_out_by_their_type(bench: Bench) -> None:
    with pytest.raises(LabelMapError):
        bench.ask(ScriptedModel(replies=REPLIES), masks=str(bench.ct))
    bench.ct.unlink()
    with pytest.raises(ScanError):
        bench.ask(ScriptedModel(replies=REPLIES))
