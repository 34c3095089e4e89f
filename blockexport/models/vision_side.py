"""The vision side of a decoder that reads pictures, as a model by itself: masked, traced and proved like any other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from blockexport.core.model import KvSpec, ModelKind, VisionSpec
from blockexport.models.adapter import PictureAdapter
from blockexport.models.reading import ReadOptions


class VisionSideAdapter:
    """Sees only the tower and what follows it up to the image tokens; the module stays the whole model.

    Args:
        whole: the whole model's adapter.
    """

    def __init__(self, whole: PictureAdapter) -> None:
        self._whole = whole

    def read(self, folder: Path, entries: Mapping[str, Any], options: ReadOptions) -> nn.Module:
        """Read the whole model."""
        return self._whole.read(folder, entries, options)

    def blocks(self, module: nn.Module) -> nn.ModuleList:
        """The tower's blocks."""
        return self._whole.vision_blocks(module)

    def kind(self, module: nn.Module) -> ModelKind:
        """Vision."""
        return "vision"

    def kv_layout(self, module: nn.Module) -> tuple[KvSpec, ...]:
        """No cache."""
        return ()

    def vision(self, module: nn.Module) -> VisionSpec | None:
        """Its sizes."""
        return self._whole.vision(module)

    def prepare_for_export(self, module: nn.Module) -> None:
        """As the whole model."""
        self._whole.prepare_for_export(module)

    def run(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Encode crops: `pixel_values` (crops, *image_shape), and `image_masks` for models that take them."""
        return BaseModelOutput(last_hidden_state=cast("Any", self._encode(module, *args, **kwargs)))

    def _encode(
        self, module: nn.Module, pixel_values: torch.Tensor, image_masks: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self._whole.encode_images(module, pixel_values, image_masks)
