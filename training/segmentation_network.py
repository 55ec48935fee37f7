"""The nano segmentation network: nnU-Net plans, construction, export in nnU-Net's results format."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tumorchain_agent.tools.organs import STRUCTURES
from tumorchain_agent.tools.segment_weights import CHECKPOINT, TRAINED, model_folder
from tumorchain_agent.training.atomic import save_torch

TASK_ID = 297
TRAINER = "nnUNetTrainer_4000epochs_NoMirroring"
CONFIGURATION = "3d_fullres"
SPACING_MM = 3.0
UNTRAINED_BIAS = -200.0
"""Bias of an output channel that was never trained: with zero weights it never wins against a trained one,
and nnU-Net's half-precision sums of it stay far from overflow."""

FEATURES = (8, 32, 64, 96, 96)
STRIDE = 16
PATCH_SIZE = (128, 144, 144)
"""[z, y, x] voxels of 3 mm: most abdomens fit into one window in-plane."""

INTENSITY = {"mean": 20.0, "std": 160.0, "percentile_00_5": -500.0, "percentile_99_5": 500.0}
"""HU. nnU-Net's CTNormalization: clip to the percentiles, subtract the mean, divide by the deviation."""


def normalize(hu: torch.Tensor) -> torch.Tensor:
    """HU → what the network sees; as nnU-Net's CTNormalization with ``INTENSITY``."""
    clipped = hu.clamp(INTENSITY["percentile_00_5"], INTENSITY["percentile_99_5"])
    return (clipped - INTENSITY["mean"]) / INTENSITY["std"]


def architecture() -> dict[str, Any]:
    """nnU-Net's ``architecture`` entry: a plain 3-D U-Net, thin at full resolution."""
    stages = len(FEATURES)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(FEATURES),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
            "n_conv_per_stage": [1, *[2] * (stages - 1)],
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def build_network(outputs: int, frequencies: tuple[float, ...] = ()) -> nn.Module:
    """PlainConvUNet: [B, 1, z, y, x] → logits [B, outputs, z, y, x]; sizes are multiples of ``STRIDE``.

    With the classes' ``frequencies`` an untrained network predicts these, which saves the first steps.
    """
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    design = architecture()
    network: nn.Module = get_network_from_plans(
        design["network_class_name"],
        design["arch_kwargs"],
        design["_kw_requires_import"],
        1,
        outputs,
        deep_supervision=False,
    )
    if frequencies:
        head: Any = network.get_submodule("decoder.seg_layers")[-1]  # type: ignore[index]
        nn.init.normal_(head.weight, std=0.05)
        head.bias.data = torch.tensor(frequencies).log()
    return network


def plans() -> dict[str, Any]:
    """nnU-Net's ``plans.json``."""
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    name = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": f"nnUNetPlans_{CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(PATCH_SIZE),
        "median_image_size_in_voxels": [float(n) for n in PATCH_SIZE],
        "spacing": [SPACING_MM] * 3,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": name,
        "resampling_fn_data_kwargs": {**resampling, "order": 3},
        "resampling_fn_seg": name,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True},
        "resampling_fn_probabilities": name,
        "resampling_fn_probabilities_kwargs": resampling,
        "architecture": architecture(),
        "batch_dice": False,
    }
    return {
        "dataset_name": model_folder(Path(), TASK_ID, TRAINER).parent.name,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [SPACING_MM] * 3,
        "original_median_shape_after_transp": list(PATCH_SIZE),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {**INTENSITY, "median": 40.0, "min": -1024.0, "max": 3071.0}
        },
    }


def dataset(cases: int, classes: tuple[int, ...]) -> dict[str, Any]:
    """nnU-Net's ``dataset.json`` for the 117 classes of task ``total``, and which of them were trained."""
    labels = {"background": 0} | {name: number for number, name in sorted(STRUCTURES.items())}
    known = {TRAINED: sorted(set(classes) - {0})}
    common = {"channel_names": {"0": "CT"}, "numTraining": cases, "file_ending": ".nii.gz"}
    return common | {"labels": labels} | known


def expand_outputs(network: nn.Module, classes: tuple[int, ...]) -> nn.Module:
    """The trained network with an output for background and each of the 117 classes.

    ``classes[i]`` is the TotalSegmentator id of the network's output i; ``classes[0]`` must be 0. Outputs
    that were not trained have zero weights and ``UNTRAINED_BIAS``.
    """
    if not classes or classes[0] != 0:
        raise ValueError(f"classes must begin with 0 (background), not {classes[:1]}")
    full = build_network(1 + len(STRUCTURES))
    state = network.state_dict()
    own = {k: v for k, v in state.items() if "seg_layers" not in k}
    full.load_state_dict(own, strict=False)
    heads: Any = full.get_submodule("decoder.seg_layers")
    for head in heads:
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, UNTRAINED_BIAS)
    last = f"decoder.seg_layers.{len(heads) - 1}"
    with torch.no_grad():
        heads[-1].weight[list(classes)] = state[f"{last}.weight"]
        heads[-1].bias[list(classes)] = state[f"{last}.bias"]
    return full


def _half_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """float16 copies; names that share a tensor (nnU-Net has many) go on sharing it, so it is stored once."""
    halves: dict[int, torch.Tensor] = {}
    return {k: halves.setdefault(v.data_ptr(), v.detach().half()) for k, v in network.state_dict().items()}


def export(
    network: nn.Module,
    classes: tuple[int, ...],
    root: Path,
    *,
    cases: int = 0,
    provenance: dict[str, Any] | None = None,
) -> Path:
    """Write the network below ``root`` as TotalSegmentator's weights for task ``total``, fast.

    Returns the model folder; ``root`` can then be ``TOTALSEG_WEIGHTS_PATH``. Weights are stored as float16.
    Each file is replaced atomically.
    """
    folder = model_folder(root, TASK_ID, TRAINER)
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    _replace(folder / "plans.json", json.dumps(plans(), indent=1).encode())
    _replace(folder / "dataset.json", json.dumps(dataset(cases, classes), indent=1).encode())
    checkpoint = {
        "network_weights": _half_weights(expand_outputs(network, classes)),
        "init_args": {"configuration": CONFIGURATION, "fold": 0},
        "trainer_name": TRAINER,
        "inference_allowed_mirroring_axes": None,
        "tumorchain": provenance or {},
    }
    save_torch(checkpoint, folder / "fold_0" / CHECKPOINT)
    return folder


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    os.replace(temporary, path)
