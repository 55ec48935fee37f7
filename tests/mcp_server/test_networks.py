"""Where several networks segment a scan, those run that somebody needs, each once, and absence is told from not yet."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from tests.graph.fakes import ScriptedModel
from tests.mcp_server.conftest import PRESENT, Files
from tests.tools.test_segment import official
from tumorchain_agent.graph.client import CTTools
from tumorchain_agent.graph.run import ask
from tumorchain_agent.mcp_server.server import build_server, connect_in_memory
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.records import Answer
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.labels import LabelMap, label_map, load_label_map
from tumorchain_agent.tools.scan import CT
from tumorchain_agent.tools.segment import Segmenter
from tumorchain_agent.tools.segment_parts import structures_of
from tumorchain_agent.tools.segment_weights import Weights, installed

ORGANS, VERTEBRAE, CARDIAC, REST = 291, 292, 293, (294, 295)


class FiveNetworks(Segmenter):
    """In the place of the five: each finds its own structures of a given label map."""

    def __init__(self, settings: Settings, files: Files, root: Path) -> None:
        super().__init__(settings)
        found = installed(root, "default", "official")
        assert found is not None
        self.five, self.files = found, files
        self.ran: list[tuple[int, ...]] = []

    def weights(self) -> Weights:
        return self.five

    def close(self) -> None:
        """No process to end."""

    def segment(
        self,
        ct: CT,
        progress: Callable[[str, float], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        weights: Weights | None = None,
    ) -> LabelMap:
        weights = weights or self.five
        self.ran.append(weights.model_ids)
        labels = load_label_map(self.files.masks, ct).labels.copy()
        labels[~np.isin(labels, [key for each in weights.model_ids for key in structures_of(each)])] = 0
        return label_map(
            labels,
            ct,
            source="official",
            task="total",
            weights_id=weights.weights_id,
            seconds=1.0,
            organs_deferred=weights.organs_deferred,
        )


@pytest.fixture
def networks(settings: Settings, files: Files, tmp_path: Path) -> FiveNetworks:
    return FiveNetworks(settings, files, official(tmp_path / "five", "default"))


@pytest.fixture
def bench(settings: Settings, networks: FiveNetworks) -> Iterator[Workbench]:
    with Workbench(settings, networks) as bench:
        yield bench


@pytest.fixture
def scan_id(bench: Workbench, files: Files) -> str:
    return bench.open_scan(str(files.scan)).scan_id


def test_asking_for_an_organ_runs_its_network_and_asking_for_more_runs_the_missing_ones(
    bench: Workbench, networks: FiveNetworks, files: Files, scan_id: str
) -> None:
    first = bench.segment_organs(scan_id, ["liver"])
    assert first.info.organs_present == ("spleen", "liver")
    assert "aorta" in first.info.organs_deferred
    more = bench.segment_organs(scan_id, ["liver", "aorta"])
    assert more.segmentation_id != first.segmentation_id
    assert bench.segment_organs(scan_id).info.organs_present == PRESENT
    assert networks.ran == [(ORGANS,), (CARDIAC,), (VERTEBRAE, *REST)]
    assert bench.segment_organs(scan_id, ["liver"]).segmentation_id == first.segmentation_id
    assert len(networks.ran) == 3


def test_tools_run_the_networks_of_their_own_organs(
    bench: Workbench, networks: FiveNetworks, scan_id: str
) -> None:
    assert bench.measure_organs(scan_id, ["liver"]).measurements[0].present
    assert bench.view_organ(scan_id, "aorta", ["axial"]).present
    assert bench.classify_abnormality(scan_id, ["liver"]).classifications
    assert networks.ran == [(ORGANS,), (CARDIAC,)]
    everything = {each.organ: each.present for each in bench.measure_organs(scan_id).measurements}
    assert networks.ran[2:] == [(VERTEBRAE, *REST)]
    assert everything["lumbar_vertebrae"]
    assert not everything["stomach"]


def test_what_no_network_has_looked_for_is_not_called_absent(
    bench: Workbench, networks: FiveNetworks, scan_id: str
) -> None:
    part = bench.segment_organs(scan_id, ["liver"]).segmentation_id
    found = bench.measure_organs(scan_id, ["stomach", "aorta"], part)
    assert [(n.code, n.organ) for n in found.notices] == [
        ("organ_absent", "stomach"),
        ("organ_deferred", "aorta"),
    ]
    everything = {each.organ for each in bench.measure_organs(scan_id, None, part).measurements}
    assert {"stomach", "lung_upper_lobe_left"} <= everything
    assert everything.isdisjoint({"aorta", "vertebrae_L1", "lumbar_vertebrae", "rib_left_1"})
    listed = {organ.name: organ.present for organ in bench.list_organs(scan_id).organs}
    assert (listed["liver"], listed["stomach"], listed["aorta"]) == (True, False, None)
    assert networks.ran == [(ORGANS,)]


def test_a_lost_label_map_of_some_networks_is_made_again(
    settings: Settings, networks: FiveNetworks, files: Files, scan_id: str, bench: Workbench
) -> None:
    part = bench.segment_organs(scan_id, ["aorta"]).segmentation_id
    shutil.rmtree(settings.cache_dir / "results")
    with Workbench(settings, networks) as later:
        assert later.measure_organs(scan_id, ["aorta"], part).measurements[0].present
    assert networks.ran == [(CARDIAC,), (CARDIAC,)]


def answered(bench: Workbench, files: Files, model: ScriptedModel, question: str, **options: Any) -> Answer:
    async def scenario() -> Answer:
        async with connect_in_memory(build_server(bench)) as client:
            database = bench.settings.cache_dir / "threads.sqlite"
            return await ask(
                CTTools(client),
                model,
                str(files.scan),
                question,
                evidence="images",
                checkpoint_db=database,
                **options,
            )

    return anyio.run(scenario)


@pytest.mark.parametrize(
    ("question", "replies", "ran"),
    [
        ("Is there a tumor?", ["The liver.", "Nothing."], [(ORGANS,)]),
        ("Is there a tumor?", ["The liver.", "The aorta.", "Nothing."], [(ORGANS,), (CARDIAC,)]),
        ("Is the lumbar spine broken?", ["No."] * 2, [(VERTEBRAE,)]),
        ("Is the lumbar spine broken?", ["The liver and aorta.", "No."], [(VERTEBRAE,), (ORGANS, CARDIAC)]),
    ],
)
def test_a_question_runs_the_networks_of_the_organs_it_reaches(
    bench: Workbench,
    networks: FiveNetworks,
    files: Files,
    question: str,
    replies: list[str],
    ran: list[tuple[int, ...]],
) -> None:
    answer = answered(bench, files, ScriptedModel(replies=replies), question)
    assert networks.ran == ran
    assert "organ_deferred" not in {notice.code for notice in answer.notices}
    assert set(answer.organs_absent) <= {"stomach", "pancreas", "colorectum", "esophagus"}
    assert answer.segmentation is not None
    assert set(answer.organs_examined) <= set(answer.segmentation.organs_present)


def test_a_question_goes_on_with_the_networks_that_it_began_with(
    settings: Settings, bench: Workbench, networks: FiveNetworks, files: Files
) -> None:
    replies = ["The liver.", "The aorta.", "Nothing."]
    for reached in (1, 2):
        with pytest.raises(IndexError):
            answered(bench, files, ScriptedModel(replies=replies[reached - 1 : reached]), "Is there a tumor?")
    with Workbench(settings, networks) as later:
        answer = answered(later, files, ScriptedModel(replies=replies[2:]), "Is there a tumor?")
        again = answered(later, files, ScriptedModel(replies=[]), "Is there a tumor?")
    assert [record.text for record in answer.rounds] == replies
    assert again == answer.model_copy(update={"notices": again.notices})
    assert networks.ran == [(ORGANS,), (CARDIAC,)]
