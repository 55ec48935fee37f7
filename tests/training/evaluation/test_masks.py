"""Lesion masks in both layouts, on scans stored either way up; and kinds that a mask doesn't tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import WriteNifti, torso, torso_grid
from tumorchain_agent.errors import InputError
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.quantity_answers import Measured, answer
from tumorchain_agent.tools.quantity_facts import Facts, NotMeasured
from tumorchain_agent.tools.quantity_questions import parse_question
from tumorchain_agent.training.evaluation.masks import find_label_map, gather

AFFINE, SHAPE = torso_grid(6.0)
HU, LABELS = torso(AFFINE, SHAPE)
Array = NDArray[Any]


def lesion(*corner: int) -> Array:
    mask = np.zeros(SHAPE, np.uint8)
    x, y, z = corner
    mask[x : x + 2, y : y + 2, z : z + 3] = 1
    return mask


LIVER = np.argwhere(LABELS == 5)
MIDDLE = tuple(int(each) for each in np.median(LIVER, axis=0))
FIRST, SECOND = lesion(*MIDDLE), lesion(MIDDLE[0] - 4, MIDDLE[1], MIDDLE[2] - 3)


class Place:
    def __init__(self, folder: Path, write: WriteNifti, affine: Array, flip: bool) -> None:
        self.folder, self.affine, self.flip, self.write = folder, affine, flip, write
        self.masks = folder / "masks"
        (self.masks / "x" / "segmentations").mkdir(parents=True)
        self.ct = self.save(HU, "ct.nii.gz", np.int16)
        self.save(LABELS, "masks/x.nii.gz")

    def save(self, values: Array, name: str, dtype: Any = np.uint8) -> Path:
        return self.write(values[:, :, ::-1] if self.flip else values, self.affine, name, dtype)

    def facts(self) -> Facts:
        with Workbench(Settings(cache_dir=self.folder / "cache")) as bench:
            return gather(bench, self.ct, "x", self.masks, find_label_map(self.masks, "x"))


@pytest.fixture(params=[False, True], ids=["feet first", "head first"])
def place(request: pytest.FixtureRequest, tmp_path: Path, write_nifti: WriteNifti) -> Place:
    affine = AFFINE.copy()
    if request.param:
        affine[2, 3] += affine[2, 2] * (SHAPE[2] - 1)
        affine[2, 2] *= -1
    return Place(tmp_path, write_nifti, affine, request.param)


def measured(facts: Facts, question: str) -> Measured:
    query = parse_question(question)
    assert query is not None
    return answer(query, facts)


def test_a_map_of_kinds_is_taken_apart_into_lesions(place: Place) -> None:
    place.save(FIRST + 4 * SECOND, "masks/x_lesions.nii.gz")
    facts = place.facts()
    assert measured(facts, "How many lesions are in the liver?").number == 2
    assert measured(facts, "How many cysts are in the liver?").number == 1
    assert measured(facts, "How many lesions are in the spleen?").number == 0
    found = measured(facts, "What is the total volume of all liver lesions in ml?")
    assert found.number == pytest.approx(24 * 0.216)
    assert set(found.sources) == {"x_lesions.nii.gz:tumor#1/1", "x_lesions.nii.gz:cyst#1/1"}
    with pytest.raises(NotMeasured, match="don't tell which lesions are pdac"):
        measured(facts, "Is there a PDAC in the pancreas?")
    with pytest.raises(NotMeasured, match="liver segments are not segmented"):
        measured(facts, "How many lesions are in segment 4 of the liver?")


def test_the_slice_is_counted_as_the_file_stores_it(place: Place) -> None:
    place.save(FIRST, "masks/x_lesions.nii.gz")
    found = measured(place.facts(), "On which axial slice is the largest liver lesion?")
    stored = np.flatnonzero((FIRST[:, :, ::-1] if place.flip else FIRST).any((0, 1)))
    assert found.number in stored


def test_abdomenatlas_folders_say_organ_and_kind_in_the_names(place: Place) -> None:
    place.save(FIRST + SECOND, "masks/x/segmentations/liver_lesion.nii.gz")
    place.save(FIRST, "masks/x/segmentations/liver_tumor.nii.gz")
    place.save(SECOND, "masks/x/segmentations/liver_cyst.nii.gz")
    place.save((LABELS == 5).astype(np.uint8), "masks/x/segmentations/liver_segment_4.nii.gz")
    place.save((LABELS == 5).astype(np.uint8), "masks/x/segmentations/liver.nii.gz")
    facts = place.facts()
    assert measured(facts, "How many lesions are in the liver?").number == 2
    assert measured(facts, "Is there a cyst in the liver?").label == "yes"
    assert measured(facts, "In which segment is the largest liver lesion?").label == "segment 4"
    with pytest.raises(NotMeasured, match="lesions of spleen are not segmented"):
        measured(facts, "Is there a lesion in the spleen?")


def test_a_folder_of_masks_that_is_missing_is_an_error_and_not_a_segmentation_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; correct TUMORCHAIN_MASKS_DIR or --masks-dir"):
        find_label_map(tmp_path / "nowhere", "x")
