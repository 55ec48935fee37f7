"""Simple shapes for the segmentation tests: scans, label maps, and a network that was never trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LIVER, STOMACH, LUMBAR_3 = 5, 6, 29


def toy_patient(
    seed: int, size: int = 48, spacing_mm: tuple[float, float, float] = (3.0, 3.0, 3.0)
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """HU and TotalSegmentator ids [x, y, z], RAS+: a fatty cylinder that holds three balls of different HU.

    The liver lies to the patient's right, the stomach to the left, the vertebra low and at the back. The
    field of view is ``size`` × 3 mm wide whatever the spacing.
    """
    rng = np.random.default_rng(seed)
    step = np.asarray(spacing_mm) / 3.0
    shape = np.round(np.array([size, size, size - 8]) / step).astype(int)
    axes = (np.arange(n) * s for n, s in zip(shape, step, strict=True))
    x, y, z = np.meshgrid(*axes, indexing="ij")
    hu = np.full(shape, -1000.0)
    labels = np.zeros(shape, np.uint8)
    hu[((x - size / 2) / (size * 0.46)) ** 2 + ((y - size / 2) / (size * 0.38)) ** 2 < 1] = -80
    for key, value, radius, centre in (
        (LIVER, 110, 0.2, (0.32, 0.55, 0.45)),
        (STOMACH, 40, 0.12, (0.72, 0.5, 0.55)),
        (LUMBAR_3, 400, 0.1, (0.5, 0.28, 0.3)),
    ):
        middle = np.array(centre) * size + rng.uniform(-2, 2, 3)
        ball = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 + (z - middle[2]) ** 2 < (radius * size) ** 2
        hu[ball], labels[ball] = value, key
    return (hu + rng.normal(0, 10, tuple(shape))).astype(np.int16), labels


def toy_ct(seed: int = 0, size: int = 48, spacing_mm: tuple[float, float, float] = (3.0, 3.0, 3.0)) -> Any:
    """The same as an opened CT."""
    from tumorchain_agent.tools.scan import ct_from_array

    hu, _ = toy_patient(seed, size, spacing_mm)
    return ct_from_array(hu.astype(np.float32), np.diag([*spacing_mm, 1.0]))


def write_toy_cases(folder: Path, count: int, size: int = 48) -> Path:
    """A folder of training cases."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        hu, labels = toy_patient(seed, size)
        np.savez(folder / f"toy-{seed:03d}.npz", hu=hu, labels=labels, spacing=np.full(3, 3.0))
    return folder


def untrained_weights(root: Path, classes: tuple[int, ...] = (0, LIVER, STOMACH, LUMBAR_3)) -> Path:
    """A weights folder with a random network."""
    import torch

    from tumorchain_agent.training.segmentation_network import build_network, export

    with torch.random.fork_rng():
        torch.manual_seed(1)
        export(build_network(len(classes)), classes, root)
    return root


def untrained_official_weights(root: Path) -> Path:
    """Random networks in the places of TotalSegmentator's five models for task ``total`` at 1.5 mm; always the same."""
    import json

    import torch
    from totalsegmentator.map_to_binary import class_map_5_parts, map_taskid_to_partname_ct

    from tumorchain_agent.tools.segment_weights import model_folder
    from tumorchain_agent.training.segmentation_network import build_network, plans

    design = plans()
    design["configurations"]["3d_fullres"] |= {"spacing": [1.5] * 3, "patch_size": [48] * 3}
    trainer = "nnUNetTrainerNoMirroring"
    for task in (291, 292, 293, 294, 295):
        names = class_map_5_parts[map_taskid_to_partname_ct[task]]
        labels = {"background": 0} | {name: key for key, name in names.items()}
        folder = model_folder(root, task, trainer)
        (folder / "fold_0").mkdir(parents=True)
        (folder / "plans.json").write_text(json.dumps(design))
        dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 0, "file_ending": ".nii.gz"}
        (folder / "dataset.json").write_text(json.dumps(dataset))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task)
            network = build_network(len(labels))
        checkpoint = {
            "network_weights": network.state_dict(),
            "init_args": {"configuration": "3d_fullres"},
            "trainer_name": trainer,
            "inference_allowed_mirroring_axes": (0, 1, 2),
        }
        torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return root
