"""Task total's five networks: which of them an organ needs, and their label maps put together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from totalsegmentator.map_to_binary import class_map, class_map_5_parts, map_taskid_to_partname_ct

from tests.segmentation_toys import toy_ct, untrained_official_weights
from tests.tools.test_segment import official
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.organs import FIVE, ORGANS
from tumorchain_agent.tools.segment import Segmenter
from tumorchain_agent.tools.segment_parts import PARTS, merged, organs_looked_for, together
from tumorchain_agent.tools.segment_weights import Weights, installed


@pytest.fixture
def five(tmp_path: Path) -> Weights:
    found = installed(official(tmp_path, "default"), "default", "official")
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("organs", "models"),
    [
        (["liver"], (291,)),
        (list(FIVE), (291,)),
        (["aorta"], (293,)),
        (["lumbar_vertebrae", "liver"], (291, 292)),
        (["rib_left", "femur", "heart"], (293, 294, 295)),
        (list(ORGANS.values()), PARTS),
    ],
)
def test_only_the_networks_that_find_the_organs_run(
    five: Weights, organs: list[str], models: tuple[int, ...]
) -> None:
    needed = five.needed_for(organs)
    assert needed.model_ids == models
    assert [path.parent.name[:10] for path in needed.models] == [f"Dataset{model}" for model in models]
    assert not set(organs).intersection(needed.organs_deferred)
    assert (needed.weights_id == five.weights_id) is (models == PARTS)


def test_every_organ_is_looked_for_or_deferred(five: Weights) -> None:
    for weights in five.subsets():
        looked_for = set(ORGANS.values()) - set(weights.organs_deferred)
        assert weights.needed_for(looked_for) == weights
        assert weights.organs_unknown == ()
    assert len({weights.weights_id for weights in five.subsets()}) == 31
    assert five.organs_deferred == ()


def test_a_choice_of_a_choice_keeps_what_was_left_out(five: Weights) -> None:
    narrow = five.needed_for(["liver", "aorta"]).needed_for(["aorta"])
    assert narrow == five.needed_for(["aorta"])
    assert five.without(narrow).model_ids == (291, 292, 294, 295)


def test_one_network_for_all_organs_is_never_narrowed(tmp_path: Path) -> None:
    fast = installed(official(tmp_path, "fast"), "fast", "official")
    assert fast is not None
    assert fast.needed_for(["liver"]) == fast
    assert fast.organs_deferred == ()


def test_label_maps_merge_as_totalsegmentator_combines_its_networks() -> None:
    seed = int(np.random.default_rng().integers(1 << 31))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    numbers = {name: key for key, name in class_map["total"].items()}
    found = {}
    for model in PARTS:
        names = list(class_map_5_parts[map_taskid_to_partname_ct[model]].values())
        ids = np.array([0, 0, *(numbers[name] for name in names)], np.uint8)
        found[model] = ids[rng.integers(0, len(ids), (6, 5, 4))]
    expected = np.zeros((6, 5, 4), np.uint8)
    for model in PARTS:
        np.copyto(expected, found[model], where=found[model] != 0)
    for order in (PARTS, PARTS[::-1], tuple(rng.permutation(PARTS))):
        result = np.zeros((6, 5, 4), np.uint8)
        for model in order:
            result = merged(result, found[int(model)])
        np.testing.assert_array_equal(result, expected)


@pytest.mark.slow
@pytest.mark.parametrize("first", [["liver"], ["heart", "femur"]])
def test_networks_that_run_one_after_the_other_give_the_label_map_of_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: list[str]
) -> None:
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(untrained_official_weights(tmp_path)))
    ct = toy_ct(0, 20)
    with Segmenter(Settings(segmentation="official", device="cpu")) as segmenter:
        weights = segmenter.weights()
        begun = weights.needed_for(first)
        whole = segmenter.segment(ct)
        part = segmenter.segment(ct, weights=begun)
        rest = segmenter.segment(ct, weights=weights.without(begun))
        pid = segmenter.worker_pid
        segmenter.segment(toy_ct(1, 20), weights=begun)
        assert segmenter.worker_pid == pid
    assert set(part.info.organs_present).isdisjoint(part.info.organs_deferred)
    assert set(organs_looked_for(part.info) or ()) >= set(first)
    assert organs_looked_for(whole.info) is None
    both = together(ct, part, rest, weights)
    np.testing.assert_array_equal(both.labels, whole.labels)
    assert both.info.weights_id == whole.info.weights_id
    assert both.info.organs_present == whole.info.organs_present
