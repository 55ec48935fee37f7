"""The checkpoint that this server runs; its weights are loaded when something has to be computed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import CheckpointError
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.cache import content_key
from tumorchain_agent.tools.preprocess import Preprocessing

if TYPE_CHECKING:
    import torch

    from tumorchain_agent.model.checkpoint import CheckpointInfo
    from tumorchain_agent.model.vision import VisionTower
    from tumorchain_agent.records import EvidenceKind
    from tumorchain_agent.tools.zoom import Zoom


class ServedCheckpoint:
    """``settings.model``, or the package's nano checkpoint. Tensors come and go on the CPU, as float32."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._info: CheckpointInfo | None = None
        self._tower: VisionTower | None = None
        self._precision: torch.dtype | None = None

    @property
    def folder(self) -> Path:
        from tumorchain_agent.model.checkpoint import NANO_DIR

        return self._settings.model or NANO_DIR

    @property
    def info(self) -> CheckpointInfo:
        """Raises CheckpointError for a folder that is incomplete, damaged or untrained."""
        from tumorchain_agent.model.checkpoint import read_info

        with self._lock:
            if self._info is None:
                self._info = self._trained(read_info(self.folder))
            return self._info

    @property
    def checkpoint_id(self) -> str:
        return self.info.checkpoint_id

    def behind(self, evidence: EvidenceKind) -> str | None:
        """Id of the checkpoint that such evidence comes from, were it only its classifier; pictures need none."""
        return None if evidence == "images" else self.checkpoint_id

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.from_dict(dict(self.info.preprocessing))

    @property
    def preprocessing_key(self) -> str:
        """Content key of how scans are prepared for it."""
        return content_key(self.preprocessing.as_dict())

    @property
    def precision_key(self) -> tuple[str, ...]:
        """What results rest on beside the weights: the encoder's type of number where it isn't float32."""
        name = str(self.precision).removeprefix("torch.")
        return () if name == "float32" else (name,)

    @property
    def precision(self) -> torch.dtype:
        """What the encoder computes in; the rest of the tower is float32."""
        from tumorchain_agent.model.checkpoint import read_vision_config
        from tumorchain_agent.model.inference import pick_precision
        from tumorchain_agent.model.llm import pick_device

        if self._precision is None:
            encoder, device = read_vision_config(self.folder).encoder, pick_device(self._settings.device)
            self._precision = pick_precision(encoder, device, self._settings.encoder_precision)
        return self._precision

    def zoom(self, wanted: bool | None = None) -> Zoom | None:
        """How it zooms into organs, or ``None``: as it was trained, unless ``wanted`` is false.

        Raises CheckpointError when zoom is wanted of a checkpoint that wasn't trained with it.
        """
        trained = self.info.zoom
        if wanted and trained is None:
            raise CheckpointError(
                f"checkpoint {self.checkpoint_id} was not trained with ROI zoom, so zoomed tokens would be noise "
                "to it; ask without zoom, or serve a checkpoint that was"
            )
        return trained if wanted is not False else None

    def check_id(self, checkpoint_id: str) -> None:
        """Raises CheckpointError when evidence of another checkpoint is asked for."""
        if checkpoint_id != self.checkpoint_id:
            raise CheckpointError(
                f"these tokens belong to checkpoint {checkpoint_id[:40]!r}, the server runs "
                f"{self.checkpoint_id}; start it with that checkpoint, or encode the scan again"
            )

    def load(self) -> None:
        """Load the vision tower unless it is loaded. Raises CheckpointError."""
        self._loaded()

    def encode(self, volume: NDArray[np.float32]) -> torch.Tensor:
        """Model volume [1, 32, 256, 256] → τ_v [2048, C]."""
        import torch

        return self._run(lambda tower, batch: tower.encode(batch)[0], torch.from_numpy(volume)[None])

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        """[n, C] → [n, hidden]."""
        return self._run(lambda tower, batch: tower.project(batch), tokens)

    def p_abnormal(self, mean_tokens: torch.Tensor) -> list[float]:
        """Mean ROI tokens [n, C] → p(abnormal) of each."""
        logits = self._run(lambda tower, batch: tower.classify(batch), mean_tokens)
        probabilities: list[float] = logits.softmax(dim=-1)[:, 1].tolist()
        return probabilities

    def close(self) -> None:
        """Forget the loaded weights; they are loaded again when needed."""
        with self._lock:
            self._tower = None

    def _run(
        self, step: Callable[[VisionTower, torch.Tensor], torch.Tensor], batch: torch.Tensor
    ) -> torch.Tensor:
        import torch

        tower = self._loaded()
        with torch.inference_mode():
            return step(tower, batch.to(next(tower.parameters()).device)).float().cpu()

    def _loaded(self) -> VisionTower:
        from tumorchain_agent.model.checkpoint import load_vision
        from tumorchain_agent.model.inference import for_inference
        from tumorchain_agent.model.llm import pick_device

        with self._lock:
            if self._tower is None:
                tower = self._checked(*load_vision(self.folder, device=pick_device(self._settings.device)))
                tower.encoder = for_inference(tower.encoder, self.precision)
                self._tower = tower
            return self._tower

    def _trained(self, info: CheckpointInfo) -> CheckpointInfo:
        if info.untrained and not self._settings.allow_untrained:
            raise CheckpointError(
                f"{self.folder} has not been trained ({' and '.join(info.untrained)} hold random weights): "
                "train it first, or set TUMORCHAIN_ALLOW_UNTRAINED=1 to try the machinery with answers of noise"
            )
        return info

    def _checked(self, tower: VisionTower, info: CheckpointInfo) -> VisionTower:
        """Results are keyed by the checkpoint that was there first; another one's must not get among them."""
        if self._info is not None and info.checkpoint_id != self._info.checkpoint_id:
            raise CheckpointError(f"{self.folder} was replaced while the server ran; start the server again")
        self._info = self._trained(info)
        return tower
