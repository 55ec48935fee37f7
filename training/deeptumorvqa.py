"""The agent for DeepTumorVQA's own command: ``deeptumorvqa-eval --backend custom --custom-module`` this module.

That package isn't on the package registry; it is imported when ``build_evaluator`` is called. Settings come from
``TUMORCHAIN_*``; ``TUMORCHAIN_MASKS_DIR`` names the folder of label maps (``training.evaluation.masks``), without which
scans are segmented, and ``TUMORCHAIN_EVIDENCE`` what the LLM reads (tokens, images or text; default: tokens).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tumorchain_agent.errors import InputError

MASKS_VARIABLE = "TUMORCHAIN_MASKS_DIR"
EVIDENCE_VARIABLE = "TUMORCHAIN_EVIDENCE"


def image_id(volume: Path) -> str:
    """``…/BDMAP_00000001/ct.nii.gz`` → ``BDMAP_00000001``; of another name the name without its suffix."""
    stem = volume.name.removesuffix(".gz").removesuffix(".nii")
    return volume.parent.name if stem == "ct" and volume.parent.name else stem


def build_evaluator(args: Any) -> Any:
    """An evaluator of that package. InputError when it isn't installed, or its arguments can't be served."""
    try:
        from deeptumorvqa.eval.vqa_evaluator import (  # type: ignore[import-not-found,unused-ignore]
            HFVLMEvaluator,
        )
    except ImportError as error:
        raise InputError(
            f"the package deeptumorvqa can't be imported ({error}); install it from its repository, or run "
            "tumorchain-agent evaluate --suite deeptumorvqa DIR, which needs none"
        ) from error
    from tumorchain_agent.training.evaluation.blocking import BlockingAgent

    if getattr(args, "mode", "vqa") != "vqa" or getattr(args, "input", "3d_volume") != "3d_volume":
        raise InputError("the agent reads volumes: pass --mode vqa --input 3d_volume")
    masks = os.environ.get(MASKS_VARIABLE)
    agent = BlockingAgent(os.environ.get(EVIDENCE_VARIABLE, "tokens"), Path(masks) if masks else None)

    class TumorChainEvaluator(HFVLMEvaluator):  # type: ignore[misc,unused-ignore]
        """Answers each prompt by measurement where it can be, else by the agent's reasoning."""

        def run(self, *args: Any, **options: Any) -> Any:
            """The package's own loop; the segmentation worker ends with it."""
            try:
                return super().run(*args, **options)
            finally:
                agent.close()

        def generate(
            self, prompt: str, images: list[Any] | None = None, video_path: str | None = None
        ) -> str:
            if video_path is None:
                raise InputError("there is no volume of this image; download benchmark/ct, pass --data-dir")
            volume = Path(video_path)
            return agent.answer(prompt, volume, image_id(volume)).text

    return TumorChainEvaluator("tumorchain-agent")
