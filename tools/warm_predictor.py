"""nnU-Net's predictor, kept warm and in process, for use inside TotalSegmentator.

Put in the place of ``totalsegmentator.nnunet.nnUNetPredictor``. It differs from nnU-Net's own in four ways:

- networks are built from ``plans.json`` by nnU-Net's ``get_network_from_plans`` and stay loaded between
  scans; nnU-Net's trainer look-up, which imports every trainer, timm and torchvision, is not needed;
- files are predicted by nnU-Net's sequential path: no process pools per scan;
- windows done are reported;
- for nano weights, the sliding window is fitted to the scan (no padding beyond the network's stride) and only
  the output channels that were trained are computed; the labels are those that all channels would give.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn


class LiveLabels(LabelManager):  # type: ignore[misc]
    """Labels of a network whose output channels are ``live_ids`` only."""

    live_ids: tuple[int, ...] = ()

    @property
    def num_segmentation_heads(self) -> int:
        return len(self.live_ids)

    def convert_logits_to_segmentation(self, predicted_logits: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """[channels, z, y, x] logits → uint8 label ids [z, y, x]."""
        logits = torch.as_tensor(predicted_logits)
        ids = np.asarray(self.live_ids, dtype=np.uint8)
        out = np.empty(tuple(logits.shape[1:]), dtype=np.uint8)
        for z in range(logits.shape[1]):
            out[z] = ids[logits[:, z].float().max(0).indices.numpy()]
        return out


class LivePlans(PlansManager):  # type: ignore[misc]
    """Plans whose label manager knows which output channels exist."""

    def __init__(self, plans: dict[str, Any], live_ids: tuple[int, ...]) -> None:
        super().__init__(plans)
        self.live_ids = live_ids

    def get_label_manager(self, dataset_json: dict[str, Any], **kwargs: Any) -> LiveLabels:
        labels = LiveLabels(dataset_json["labels"], dataset_json.get("regions_class_order"), **kwargs)
        labels.live_ids = self.live_ids
        return labels


@dataclass
class LoadedModel:
    """Everything that ``manual_initialization`` takes."""

    network: nn.Module
    plans: PlansManager
    configuration: ConfigurationManager
    parameters: list[dict[str, torch.Tensor]]
    dataset: dict[str, Any]
    trainer: str
    planned_patch: tuple[int, ...]


def live_channels(head: nn.Conv3d) -> tuple[int, ...]:
    """Output channels of the last layer that were trained; background always counts."""
    trained = head.weight.detach().abs().flatten(1).sum(1) > 0
    trained[0] = True
    return tuple(int(i) for i in trained.nonzero().flatten())


class SlabHead(nn.Conv3d):
    """The last, 1 × 1 × 1 convolution, a few slices at a time into float16, the type nnU-Net sums windows in.

    The logits of all classes are by far the largest array of a prediction.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits = features.new_empty(
            (features.shape[0], self.out_channels, *features.shape[2:]), dtype=torch.half
        )
        for start in range(0, features.shape[2], 8):
            slab = slice(start, start + 8)
            logits[:, :, slab] = super().forward(features[:, :, slab])
        return logits


def trim_head(network: nn.Module, live_ids: tuple[int, ...]) -> None:
    """Replace the network's last layer by one that has the ``live_ids`` channels only."""
    heads: Any = network.get_submodule("decoder.seg_layers")
    old: nn.Conv3d = heads[-1]
    new = SlabHead(old.in_channels, len(live_ids), kernel_size=1)
    new.weight.data = old.weight.data[list(live_ids)].clone()
    if old.bias is not None and new.bias is not None:
        new.bias.data = old.bias.data[list(live_ids)].clone()
    heads[-1] = new


def load_model(folder: Path, folds: tuple[int, ...], *, nano: bool) -> LoadedModel:
    """Read a model folder in nnU-Net's results format and build its network from ``plans.json``."""
    plans_json: dict[str, Any] = json.loads((folder / "plans.json").read_text())
    dataset: dict[str, Any] = json.loads((folder / "dataset.json").read_text())
    checkpoints = [
        torch.load(folder / f"fold_{fold}" / "checkpoint_final.pth", map_location="cpu", weights_only=nano)
        for fold in folds
    ]
    plans = PlansManager(plans_json)
    configuration = plans.get_configuration(checkpoints[0]["init_args"]["configuration"])
    network: nn.Module = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        determine_num_input_channels(plans, configuration, dataset),
        plans.get_label_manager(dataset).num_segmentation_heads,
        allow_init=False,
        deep_supervision=False,
    )
    parameters = [checkpoint["network_weights"] for checkpoint in checkpoints]
    network.load_state_dict(parameters[0])
    if nano:
        live = live_channels(network.get_submodule("decoder.seg_layers")[-1])  # type: ignore[index]
        trim_head(network, live)
        plans = LivePlans(plans_json, live)
        parameters = [network.state_dict()]
    network.eval()
    return LoadedModel(
        network,
        plans,
        configuration,
        parameters,
        dataset,
        str(checkpoints[0]["trainer_name"]),
        tuple(configuration.patch_size),
    )


def fitted_patch(planned: tuple[int, ...], image: tuple[int, ...], stride: tuple[int, ...]) -> list[int]:
    """The planned window, no larger than the image rounded up to the network's stride."""
    return [min(p, -(-n // s) * s) for p, n, s in zip(planned, image, stride, strict=True)]


class WarmPredictor(nnUNetPredictor):  # type: ignore[misc]
    """See the module's text. Class attributes are set once by the worker."""

    models: dict[tuple[str, tuple[int, ...]], LoadedModel] = {}  # noqa: RUF012
    nano = False
    threads = 2
    report: Callable[[int, int], None] = staticmethod(lambda done, total: None)
    """Called with the windows done and their number, for the model that is running."""

    def initialize_from_trained_model_folder(
        self, model_training_output_dir: str, use_folds: Any, checkpoint_name: str = "checkpoint_final.pth"
    ) -> None:
        folds = tuple(int(fold) for fold in (use_folds or (0,)))
        key = (str(model_training_output_dir), folds)
        if key not in self.models:
            self.models[key] = load_model(Path(key[0]), folds, nano=self.nano)
        model = self.models[key]
        self.loaded = model
        self.manual_initialization(
            model.network,
            model.plans,
            model.configuration,
            model.parameters,
            model.dataset,
            model.trainer,
            None,
        )

    def predict_from_files(
        self, source: str, output: str, save_probabilities: bool = False, **options: Any
    ) -> Any:
        """nnU-Net's ``predict_from_files`` for a folder of one-channel images, without its process pools."""
        torch.set_num_threads(self.threads)
        ending = f"_0000{self.dataset_json['file_ending']}"
        images = sorted(path for path in Path(source).iterdir() if path.name.endswith(ending))
        outputs = [str(Path(output) / image.name.removesuffix(ending)) for image in images]
        cases = [[str(image)] for image in images]
        return self.predict_from_files_sequential(cases, outputs, save_probabilities)

    def predict_sliding_window_return_logits(self, input_image: torch.Tensor) -> torch.Tensor:
        if self.nano:
            strides = np.prod(self.configuration_manager.pool_op_kernel_sizes, axis=0)
            self.configuration_manager.configuration["patch_size"] = fitted_patch(
                self.loaded.planned_patch, tuple(input_image.shape[1:]), tuple(int(s) for s in strides)
            )
        logits: torch.Tensor = super().predict_sliding_window_return_logits(input_image)
        return logits

    def _internal_get_sliding_window_slicers(self, image_size: tuple[int, ...]) -> list[tuple[slice, ...]]:
        slicers: list[tuple[slice, ...]] = super()._internal_get_sliding_window_slicers(image_size)
        self.windows, self.windows_done = len(slicers), 0
        if self.nano:
            self.use_gaussian = len(slicers) > 1
        return slicers

    def _internal_maybe_mirror_and_predict(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = super()._internal_maybe_mirror_and_predict(x)
        self.windows_done += 1
        self.report(self.windows_done, self.windows)
        return logits
