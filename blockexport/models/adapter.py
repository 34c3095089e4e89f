"""Where an architecture keeps its blocks and what its export needs: the seam between models and everything else.

Most architectures need no code here: the blocks are the one `ModuleList` as long as the configuration says, and the
cache layout is read off a forward of one token. An architecture that differs gets a file of its own and an entry in
`_ADAPTERS`.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from blockexport.core.model import KvSpec, ModelKind, VisionSpec
from blockexport.errors import ModelSupportError
from blockexport.models.pretrained import check_surplus_blocks, read_pretrained
from blockexport.models.reading import ReadOptions


class ModelAdapter(Protocol):
    """What the stages ask of an architecture."""

    def read(self, folder: Path, entries: Mapping[str, Any], options: ReadOptions) -> nn.Module:
        """Build the model of a checkpoint folder whose `config.json` holds `entries`; see `load_model`."""

    def blocks(self, module: nn.Module) -> nn.ModuleList:
        """The prunable blocks, in order."""

    def kind(self, module: nn.Module) -> ModelKind:
        """Decoder, encoder or vision."""

    def kv_layout(self, module: nn.Module) -> tuple[KvSpec, ...]:
        """Per block, its cache row; empty for models without a cache."""

    def vision(self, module: nn.Module) -> VisionSpec | None:
        """The vision side of a decoder that reads pictures."""

    def prepare_for_export(self, module: nn.Module) -> None:
        """Switch a copy of the model to forms that trace to a static graph."""

    def run(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Call the model; its output object has the output that the specification names."""


@runtime_checkable
class PictureAdapter(ModelAdapter, Protocol):
    """What the stages ask besides of a decoder that reads pictures.

    Everywhere but in these methods pictures are three arrays, whatever the architecture: `images` (batch, crops,
    *image_shape), `image_masks` (batch, crops, *mask_shape) for models that take them, and `image_input_idx` (batch,
    crops, pooled), the column of `input_ids` where each image token enters, below 0 for none. Crops of rows that have
    fewer than others are -1 throughout.
    """

    def vision_blocks(self, module: nn.Module) -> nn.ModuleList:
        """The prunable blocks of the vision tower, in order: `VisionSpec.num_blocks` of them."""

    def encode_images(self, module: nn.Module, images: torch.Tensor, image_masks: torch.Tensor | None) -> torch.Tensor:
        """Crops (crops, *image_shape) to image tokens (crops, pooled, hidden)."""

    def picture_arguments(
        self, module: nn.Module, pictures: Mapping[str, torch.Tensor], text: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The arguments of the module's own forward that say the same as the three arrays.

        Args:
            module: the model.
            pictures: the three arrays.
            text: what the forward is given besides, `input_ids` among it.
        """


class TreeAdapter:
    """The common case: everything is found from the module tree and the configuration."""

    def read(self, folder: Path, entries: Mapping[str, Any], options: ReadOptions) -> nn.Module:
        """Load by the transformers class that the checkpoint was saved from.

        Raises:
            ModelSupportError: the folder is incomplete or damaged, or the architecture not supported.
        """
        module, unexpected = read_pretrained(folder, entries, options)
        blocks = self.blocks(module)
        path = next(path for path, child in module.named_modules() if child is blocks)
        check_surplus_blocks(folder, unexpected, path, len(blocks))
        return module

    def blocks(self, module: nn.Module) -> nn.ModuleList:
        """The one `ModuleList` with `num_hidden_layers` children of one class.

        Raises:
            ModelSupportError: there is none, or more than one.
        """
        return block_list(module, self._num_blocks(module))

    def kind(self, module: nn.Module) -> ModelKind:
        """Told by the model's main input and by whether it can generate."""
        if getattr(module, "main_input_name", "input_ids") == "pixel_values":
            return "vision"
        can_generate = getattr(module, "can_generate", lambda: False)
        return "decoder" if can_generate() and getattr(module.config, "is_decoder", True) else "encoder"

    def kv_layout(self, module: nn.Module) -> tuple[KvSpec, ...]:
        """Read off the cache that a forward of one token fills.

        Raises:
            ModelSupportError: the model remembers in another form than one row of keys and values for each block.
        """
        if self.kind(module) != "decoder":
            return ()
        with torch.no_grad():
            token = torch.zeros(1, 1, dtype=torch.long, device=next(module.parameters()).device)
            output = module(input_ids=token, use_cache=True)
        rows = getattr(getattr(output, "past_key_values", None), "layers", ())
        keys = [row.keys for row in rows if isinstance(getattr(row, "keys", None), torch.Tensor)]
        if len(keys) != self._num_blocks(module):
            msg = (
                f"{type(module).__name__} does not keep one row of keys and values for each of its "
                f"{self._num_blocks(module)} blocks; only decoders whose every block attends are supported"
            )
            raise ModelSupportError(msg)
        return tuple(KvSpec(num_heads=key.shape[1], head_dim=key.shape[3]) for key in keys)

    def vision(self, module: nn.Module) -> VisionSpec | None:
        """None: the models of the common case read one thing."""
        return None

    def prepare_for_export(self, module: Any) -> None:
        """Refuse what no engine is made of; nothing needs another form.

        Raises:
            ModelSupportError: the weights are not held in float32, in which engines are proved; or the model attends
                causally but writes no text, while engines of one pass see all tokens.
        """
        others = {parameter.dtype for parameter in module.parameters()} - {torch.float32}
        if others:
            listed = ", ".join(sorted(str(dtype) for dtype in others))
            msg = f"{type(module).__name__} holds weights in {listed}; engines are built from float32, call .float()"
            raise ModelSupportError(msg)
        if self.kind(module) == "encoder" and any(getattr(part, "is_causal", False) for part in module.modules()):
            msg = (
                f"{type(module).__name__} attends causally but has no language-model head, which no engine is made "
                "for; load the ...ForCausalLM class of this checkpoint"
            )
            raise ModelSupportError(msg)

    def run(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        return module(*args, **kwargs)

    def _num_blocks(self, module: nn.Module) -> int:
        config: Any = module.config
        config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else None
        num_blocks = getattr(config, "num_hidden_layers", None)
        if not isinstance(num_blocks, int):
            msg = f"{type(module).__name__} has no config.num_hidden_layers; add an adapter for this architecture"
            raise ModelSupportError(msg)
        return num_blocks


def block_list(module: nn.Module, num_blocks: int) -> nn.ModuleList:
    """The one `ModuleList` with so many children of one class.

    Raises:
        ModelSupportError: there is none, or more than one.
    """
    found = {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, nn.ModuleList) and len(child) == num_blocks and len({type(item) for item in child}) == 1
    }
    if len(found) != 1:
        listed = ", ".join(found) or "none"
        msg = (
            f"{type(module).__name__} must have one ModuleList of {num_blocks} blocks (num_hidden_layers), "
            f"found: {listed}; add an adapter for this architecture (see CONTRIBUTING.md)"
        )
        raise ModelSupportError(msg)
    return next(iter(found.values()))


# model_type -> "module:class"; only architectures for which TreeAdapter is wrong.
_ADAPTERS: dict[str, str] = {
    "llava": "blockexport.models.adapters.llava:LlavaAdapter",
    "molmo": "blockexport.models.molmo.adapter:MolmoAdapter",
    "molmo2": "blockexport.models.adapters.molmo2:Molmo2Adapter",
    "qwen2_vl": "blockexport.models.adapters.qwen2_vl:Qwen2VlAdapter",
}


def adapter_of(model_type: str) -> ModelAdapter:
    """The adapter of an architecture, by the `model_type` of its configuration."""
    if model_type not in _ADAPTERS:
        return TreeAdapter()
    module_name, _, class_name = _ADAPTERS[model_type].partition(":")
    adapter: ModelAdapter = getattr(importlib.import_module(module_name), class_name)()
    return adapter


def adapted_architectures() -> tuple[str, ...]:
    """Architectures whose adapter reads pictures."""
    return tuple(name for name in _ADAPTERS if isinstance(adapter_of(name), PictureAdapter))


def resolve_adapter(module: nn.Module) -> ModelAdapter:
    """The adapter of a model's architecture."""
    return adapter_of(getattr(getattr(module, "config", None), "model_type", ""))
