"""What the paper's error analysis names (13.2): mimics, small lesions at edges, tumours that push neighbours aside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from tests.training.phantom.truths import laid, painted_patient
from tumorchain_agent.training.phantom.anatomy import ORGAN_IDS, Painted, Tissue
from tumorchain_agent.training.phantom.compression import MOST_PUSHED, NEIGHBOURS, PUSHED_MM3, REACH, push
from tumorchain_agent.training.phantom.disease import (
    EDGE_SHARE,
    LUNG_SHARE,
    PERITONEUM_SHARE,
    sample_disease,
)
from tumorchain_agent.training.phantom.export import truth_record
from tumorchain_agent.training.phantom.lesions import EDGE_MM, Lesion, sample_tumor, surface_gap_mm
from tumorchain_agent.training.phantom.mimics import (
    PANCREATITIS_SHARE,
    PSEUDOCYST_SHARE,
    sample_mimics,
    sample_pancreatitis,
    sample_pseudocyst,
)
from tumorchain_agent.training.phantom.patient import KINDS, ORGANS, Case, realise
from tumorchain_agent.training.phantom.shapes import Grid
from tumorchain_agent.training.phantom.stamps import lesion_ratio, lesion_window, stamp
from tumorchain_agent.training.targets import ATTRIBUTES, case_targets, lesion_classes

COARSE = (3.0, 3.0, 6.0)


def copied(painted: Painted) -> Painted:
    return Painted(painted.labels.copy(), painted.tissue.copy())


def compressing(count: int) -> Iterator[tuple[Lesion, Painted, Painted, Grid, tuple[int, ...]]]:
    """Pancreas and liver tumours that pushed something: the patient before and after."""
    rng = np.random.default_rng(8)
    while count:
        plan, grid, painted = painted_patient(70 + int(rng.integers(6)))
        organ = ("pancreas", "liver")[int(rng.integers(2))]
        lesion = sample_disease(rng, plan.anatomy, organ, painted, grid)[0]
        after = copied(painted)
        pushed = push(lesion, after, grid) if lesion.compressing else ()
        if pushed:
            count -= 1
            yield lesion, painted, after, grid, pushed


def test_a_pushed_neighbour_moves_and_neither_shrinks_much_nor_is_invaded() -> None:
    moved = []
    for lesion, before, after, grid, pushed in compressing(20):
        mark = stamp(lesion, after, grid)
        assert mark is not None
        assert mark.roomy
        tumor = mark.ratio < 1
        for number in pushed:
            was, now = before.labels == number, after.labels == number
            assert not (now[mark.window] & tumor & (mark.alpha > 0.5)).any(), "the lesion took none of it"
            assert 0.6 < now.sum() / was.sum() < 1.25
            moved.append((now & ~was).sum() * grid.voxel_mm3)
            gone = (was & ~now)[mark.window]
            assert (gone & (mark.ratio < 1.2)).sum() * grid.voxel_mm3 >= 0.8 * PUSHED_MM3
    assert np.quantile(moved, 0.1) > 0.2 * PUSHED_MM3, "few are only dented; of most the other side gives way"


def test_only_the_surroundings_are_deformed_and_bones_stay() -> None:
    for lesion, before, after, grid, pushed in compressing(12):
        changed = (before.labels != after.labels) | (before.tissue != after.tissue)
        window = lesion_window(lesion, grid, REACH * 1.2)
        assert window is not None
        outside = changed.copy()
        outside[window] = False
        assert not outside.any()
        ratio = lesion_ratio(replace(lesion, shape="round"), grid, window)
        assert not (changed[window] & (ratio > REACH * 1.2)).any()
        for tissue in (Tissue.CORTEX, Tissue.MARROW, Tissue.MUSCLE, Tissue.ARTERY, Tissue.AIR):
            assert np.array_equal(before.tissue == tissue, after.tissue == tissue)
        for number in pushed:
            assert number in NEIGHBOURS
            assert number != ORGAN_IDS[lesion.organ]


def test_the_label_map_moves_with_the_image() -> None:
    """A pushed stomach is still wall around lumen: its tissues are those of a stomach, on its own label."""
    for _, before, after, _, pushed in compressing(8):
        for number in pushed:
            had, has = (np.unique(p.tissue[p.labels == number]).tolist() for p in (before, after))
            assert set(has) <= set(had)


def test_where_nothing_gives_way_nothing_is_changed() -> None:
    plan, grid, painted = painted_patient(70)
    deep = sample_tumor(np.random.default_rng(3), plan.anatomy, "liver", 12.0)
    liver = np.argwhere(painted.labels == ORGAN_IDS["liver"])
    inside = ndimage.distance_transform_edt(painted.labels == ORGAN_IDS["liver"], grid.spacing)
    middle = np.unravel_index(inside.argmax(), inside.shape)
    x, y, z = (float(grid.axis(k)[i]) for k, i in enumerate(middle))
    assert len(liver)
    after = copied(painted)
    assert push(replace(deep, centre_mm=(x, y, z), compressing=True), after, grid) == ()
    assert push(replace(deep, centre_mm=(x, y, 9e3), compressing=True), after, grid) == ()
    assert np.array_equal(after.labels, painted.labels)
    assert np.array_equal(after.tissue, painted.tissue)


def test_no_organ_is_swallowed() -> None:
    for _, before, after, grid, pushed in compressing(12):
        for number in pushed:
            lost = ((before.labels == number) & (after.labels != number)).sum() * grid.voxel_mm3
            assert lost < 2 * MOST_PUSHED * (before.labels == number).sum() * grid.voxel_mm3


def test_truth_names_what_is_compressed_as_healthy_and_not_invaded() -> None:
    rng = np.random.default_rng(11)
    found = [laid(rng, organ)[0] for organ in ("pancreas", "liver") * 25]
    pushing = [truth for truth in found if truth.compresses]
    assert 0.1 < len(pushing) / len(found) < 0.4
    for truth in pushing:
        assert not truth.invaded
        assert ORGAN_IDS[str(truth.organ)] not in truth.compresses
        healthy = {organ for organ in ORGANS if ORGAN_IDS[organ] in truth.compresses} - {"liver"}
        assert not healthy & set(truth.abnormal_organs)


@pytest.mark.parametrize("organ", ["liver", "pancreas"])
def test_a_lesion_drawn_at_the_edge_is_there_in_the_label_map(organ: str) -> None:
    rng = np.random.default_rng(5)
    plan, grid, painted = painted_patient(71)
    host = painted.labels == ORGAN_IDS[organ]
    depth = ndimage.distance_transform_edt(host, grid.spacing)
    gaps = []
    for _ in range(25):
        lesion = sample_tumor(rng, plan.anatomy, organ, float(rng.uniform(11, 20)), edge=True)
        gaps.append(surface_gap_mm(lesion, plan.anatomy))
        mark = stamp(lesion, painted, grid)
        assert mark is not None
        inside = depth[mark.window][mark.ratio < 1]
        assert inside.min() <= EDGE_MM + max(grid.spacing), "within 5 mm of the surface, to within a voxel"
    assert max(gaps) <= EDGE_MM


def test_a_lesion_deep_in_the_liver_is_not_at_the_edge() -> None:
    rng = np.random.default_rng(6)
    plan, grid, painted = painted_patient(72)
    depth = ndimage.distance_transform_edt(painted.labels == ORGAN_IDS["liver"], grid.spacing)
    i, j, k = np.unravel_index(depth.argmax(), depth.shape)
    centre = (float(grid.axis(0)[i]), float(grid.axis(1)[j]), float(grid.axis(2)[k]))
    deep = replace(sample_tumor(rng, plan.anatomy, "liver", 16.0), centre_mm=centre)
    assert surface_gap_mm(deep, plan.anatomy) > EDGE_MM


def test_a_share_of_small_tumours_is_at_the_edge_and_truth_says_so() -> None:
    rng = np.random.default_rng(12)
    small: list[Lesion] = []
    while len(small) < 28:
        truth, marks = laid(rng, "liver")
        small += [m.lesion for m in marks if m.lesion.kind == "tumor" and m.lesion.size_mm < 20]
        if truth.organ:
            main = max(marks, key=lambda m: (m.lesion.kind == "tumor", m.lesion.size_mm)).lesion
            assert truth.edge == main.at_edge
            assert not truth.edge or truth.size_mm < 20
    share = np.mean([lesion.at_edge for lesion in small])
    assert EDGE_SHARE - 0.15 < share < EDGE_SHARE + 0.35, "those drawn there, and those there by chance"
    assert all(lesion.edge_mm is not None for lesion in small)


def test_mimics_come_at_their_documented_rates() -> None:
    plan, _, _ = painted_patient(70)
    rng = np.random.default_rng(13)
    drawn = [{lesion.kind for lesion in sample_mimics(rng, plan.anatomy)} for _ in range(900)]
    for kind, share in (
        ("pseudocyst", PSEUDOCYST_SHARE),
        ("pancreatitis", PANCREATITIS_SHARE),
        ("cyst", 0.4),
    ):
        error = 4 * (share * (1 - share) / len(drawn)) ** 0.5
        assert abs(np.mean([kind in kinds for kinds in drawn]) - share) < error
    assert not any({"pseudocyst", "pancreatitis"} <= kinds for kinds in drawn)


def with_mimic(kind: str) -> tuple[Case, Case]:
    """A healthy patient with one mimic, and the same without."""
    sample = {"pseudocyst": sample_pseudocyst, "pancreatitis": sample_pancreatitis}[kind]
    for number in range(70, 90):
        plan, _, _ = painted_patient(number)
        bare = replace(plan, lesions=(), look=replace(plan.look, noise_hu=0.0))
        grid = painted_patient(number)[1]
        lesion = sample(np.random.default_rng(number), plan.anatomy)
        case = realise(replace(bare, lesions=(lesion,)), grid)
        if case.lesions:
            return case, realise(bare, grid)
    raise AssertionError("no mimic found room in twenty patients")


@pytest.mark.parametrize("kind", ["pseudocyst", "pancreatitis"])
def test_a_mimic_is_no_tumour_in_truth_and_targets(kind: str) -> None:
    case, _ = with_mimic(kind)
    assert case.truth.organ is None
    assert case.truth.abnormal_organs == ()
    assert case.truth.mimics == (f"pancreas:{kind}",)
    assert set(np.unique(case.lesion_mask)) == {0, KINDS[kind]}
    assert truth_record(case)["mimics"] == (f"pancreas:{kind}",)


def test_pancreatitis_darkens_the_gland_soaks_the_fat_and_leaves_the_label_map() -> None:
    case, bare = with_mimic("pancreatitis")
    assert np.array_equal(case.labels, bare.labels)
    change = case.hu - bare.hu
    gland = case.lesion_index > 0
    assert (bare.labels[gland] == ORGAN_IDS["pancreas"]).all()
    assert -26 < change[gland].mean() < -4
    fat = (bare.labels == 0) & (change > 5)
    assert fat.sum() * case.grid.voxel_mm3 > 1000
    assert change[fat].max() < 120


def test_a_pseudocyst_is_fluid_in_a_wall_and_belongs_to_the_pancreas() -> None:
    case, _ = with_mimic("pseudocyst")
    inside = case.lesion_index > 0
    assert (case.labels[inside] == ORGAN_IDS["pancreas"]).all()
    core = ndimage.distance_transform_edt(inside, case.grid.spacing) > 7
    assert not core.any() or abs(case.hu[core].mean() - case.lesions[0].delta_hu) < 8


def test_lung_and_peritoneal_metastases_are_where_they_belong() -> None:
    rng = np.random.default_rng(21)
    seen: dict[str, int] = {"lung": 0, "peritoneum": 0}
    patients = 80
    for k in range(patients):
        plan, grid, painted = painted_patient(70 + k % 6)
        lesions = sample_disease(rng, plan.anatomy, ORGANS[k % 5], painted, grid)
        for site in seen:
            found = [lesion for lesion in lesions if lesion.organ == site]
            seen[site] += bool(found)
            for lesion in found:
                where = np.rint((np.array(lesion.centre_mm) - grid.origin) / grid.spacing).astype(int)
                tissue, label = painted.tissue[tuple(where)], painted.labels[tuple(where)]
                assert tissue == (Tissue.LUNG if site == "lung" else Tissue.FAT)
                assert (label in range(10, 15)) if site == "lung" else label == 0
                assert (lesion.kind, lesion.primary) == ("metastasis", ORGANS[k % 5])
            if site == "peritoneum":
                away = [np.subtract(each.centre_mm, lesions[0].centre_mm) for each in found]
                assert all(np.linalg.norm(v) > 50 for v in away), "far from where regional nodes are"
    for site, share in (("lung", LUNG_SHARE), ("peritoneum", PERITONEUM_SHARE)):
        assert seen[site] / patients < share + 4 * (share / patients) ** 0.5
        assert seen[site] > 2


def test_no_node_touches_another() -> None:
    rng = np.random.default_rng(22)
    for k in range(40):
        _, marks = laid(rng, ORGANS[k % 5], anatomies=4)
        nodes = [m.lesion for m in marks if m.lesion.kind == "node"]
        for i, a in enumerate(nodes):
            for b in nodes[:i]:
                gap = np.linalg.norm(np.subtract(a.centre_mm, b.centre_mm))
                assert gap > max(a.radii_mm) + max(b.radii_mm)


def test_metastases_outside_the_five_organs_have_no_class_of_an_organ() -> None:
    plan, grid, painted = painted_patient(70)
    rng = np.random.default_rng(23)
    strange: list[Lesion] = []
    while not strange:
        lesions = sample_disease(rng, plan.anatomy, "pancreas", painted, grid)
        strange = [lesion for lesion in lesions if lesion.organ in ("lung", "peritoneum")]
    case = realise(replace(plan, lesions=tuple(lesions)), grid, copied(painted))
    classes = lesion_classes(strange[0])
    assert (classes["organ"], classes["section"], classes["reach"]) == (-1, -1, -1)
    assert classes["kind"] == ATTRIBUTES["kind"].index("metastasis")
    assert set(case.truth.sites) >= {strange[0].organ}
    assert set(case.truth.abnormal_organs) <= set(ORGANS)


def test_a_patient_of_nano_with_any_finding_has_targets() -> None:
    from tumorchain_agent.training.phantom.volume import generate_nano

    cases = map(generate_nano, range(30, 80))
    far = (case for case in cases if {lesion.organ for lesion in case.lesions} - set(ORGAN_IDS))
    case = next(case for case in far if case.truth.size_mm >= 30)
    targets = case_targets(case)
    assert targets["fine"].shape == (3, 16, 32, 32)
    assert float(targets["fine"][0].max()) > 0.5
