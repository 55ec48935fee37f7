"""Counterfactual phantoms differ by their disease alone; views are what inference prepares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tumorchain_agent.tools.preprocess import Preprocessing, preprocess
from tumorchain_agent.tools.scan import open_ct
from tumorchain_agent.training.phantom.export import save_nifti
from tumorchain_agent.training.phantom.patient import ORGANS, generate
from tumorchain_agent.training.phantom.render import to_stored
from tumorchain_agent.training.suite.patients import (
    LARGE_MM,
    Making,
    Scanned,
    ahead,
    intensities,
    scans_of,
    view,
)

COARSE = Making(Preprocessing(), (2.5, 2.5, 6.0), counterfactuals=True)
ILL, WELL = 9_000_004, 9_000_005
"""Seeds of a patient with a large tumor and of one without any."""


@pytest.fixture(scope="module")
def scans() -> list[Scanned]:
    return scans_of(ILL, COARSE)


def test_a_patient_is_the_one_that_its_seed_draws(scans: list[Scanned]) -> None:
    case = generate(ILL, COARSE.spacing)
    assert np.array_equal(scans[0].ct.hu, to_stored(case.hu))
    assert np.array_equal(scans[0].labels, case.labels)
    assert scans[0].truth == case.truth
    assert len(scans_of(WELL, COARSE)) == 1


def test_counterfactuals_differ_by_the_disease_alone(scans: list[Scanned]) -> None:
    drawn, without, moved = scans
    assert [each.variant for each in scans] == ["as drawn", "without tumor", "tumor moved"]
    assert drawn.truth.organ is not None
    assert without.truth.organ is None
    assert without.truth.abnormal_organs == ()
    assert moved.truth.organ not in (None, *drawn.truth.abnormal_organs)
    assert moved.truth.size_mm >= LARGE_MM
    for other in (without, moved):
        assert other.truth.mimics == drawn.truth.mimics
        assert other.truth.phase == drawn.truth.phase
        assert np.array_equal(other.ct.affine, drawn.ct.affine)
        changed = other.ct.hu != drawn.ct.hu
        assert 0 < changed.mean() < 0.05
    assert np.array_equal(scans_of(ILL, COARSE)[2].ct.hu, moved.ct.hu)


def test_a_view_is_what_a_scan_from_a_file_gives(scans: list[Scanned], tmp_path: Path) -> None:
    path = tmp_path / "ct.nii.gz"
    save_nifti(to_stored(scans[0].ct.hu), scans[0].ct.affine, path)
    seen = view(scans[0], COARSE.preprocessing)
    assert np.array_equal(seen.volume, preprocess(open_ct(path)).volume)
    assert set(ORGANS) <= set(seen.present)
    found = intensities(seen)
    assert set(found) == set(ORGANS)
    assert 0.3 < found["liver"] < 0.9


def test_patients_come_in_order(scans: list[Scanned]) -> None:
    here = [each[0].truth for each in ahead(scans_of, [WELL, ILL], COARSE, 0)]
    assert [truth.seed for truth in here] == [WELL, ILL]
