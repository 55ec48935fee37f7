"""Stray islands go; an organ's parts of like size stay, and so does everybody else's voxel."""

from __future__ import annotations

import numpy as np

from tumorchain_agent.tools.islands import without_islands


def test_small_parts_become_background_and_large_ones_stay() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[1:9, 1:9, 1:9] = 5
    labels[12:16, 12:16, 12:17] = 5
    labels[18, 18, 18] = 5
    labels[10, 10, 10] = 7
    cleaned = without_islands(labels)
    assert cleaned[18, 18, 18] == 0
    expected = labels.copy()
    expected[18, 18, 18] = 0
    assert np.array_equal(cleaned, expected)
    assert labels[18, 18, 18] == 5


def test_voxels_that_touch_at_a_corner_are_one_part() -> None:
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[0:5, 0:5, 0:5] = 3
    labels[5, 5, 5] = 3
    assert np.array_equal(without_islands(labels), labels)


def test_an_island_inside_anothers_box_leaves_that_organ_whole() -> None:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[:, :, :5] = 2
    labels[4, 4, 2] = 9
    labels[0:6, 0:6, 6:10] = 9
    cleaned = without_islands(labels)
    assert cleaned[4, 4, 2] == 0
    assert np.array_equal(cleaned == 2, labels == 2)


def test_nothing_segmented_stays_nothing() -> None:
    assert not without_islands(np.zeros((3, 4, 5), np.uint8)).any()
