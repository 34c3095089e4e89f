"""The eager masked reference: the unpruned model with some blocks passed over, the oracle of every gate."""

from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from blockexport.core.masks import DepthMask
from blockexport.errors import MaskError
from blockexport.models.loaded import LoadedModel, as_loaded
from blockexport.models.skip import active_mask, cache_hook

_MISSING = object()


def _pass_through(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return hidden_states


class MaskedModel:
    """Applies a mask to a model in place and takes it off again.

    Exact for padded batches and cached generation: a kept block sees just what it would see in a model from which
    the skipped blocks had been removed. Use as a context manager, or call `apply` and `remove`.
    """

    def __init__(self, model: LoadedModel | nn.Module, mask: DepthMask) -> None:
        self._model = as_loaded(model)
        self._model.check_mask(mask)
        self._mask = mask
        self._attribute = active_mask(self._model.spec.block_path)
        self._is_applied = False
        self._hook: RemovableHandle | None = None
        self._shadowed: dict[int, Any] = {}

    def apply(self) -> None:
        """Skip the masked blocks from now on.

        Raises:
            MaskError: a mask is already applied to this model; masks do not nest.
        """
        module = self._model.module
        if hasattr(module, self._attribute):
            msg = "this model already has a mask applied; remove it first, masks do not nest"
            raise MaskError(msg)
        kind = self._model.spec.kind
        if kind != "vision":
            prepare = cache_hook(self._mask, is_decoder=kind == "decoder")
            self._hook = module.register_forward_pre_hook(prepare, with_kwargs=True)
        object.__setattr__(module, self._attribute, self._mask)
        self._is_applied = True
        blocks = self._model.blocks
        # An instance attribute shadows the class's forward. Whoever has shadowed it before, e.g. accelerate, finds
        # that again.
        self._shadowed = {block: vars(blocks[block]).get("forward", _MISSING) for block in self._mask.skipped}
        for block in self._shadowed:
            object.__setattr__(blocks[block], "forward", _pass_through)

    def remove(self) -> None:
        """Run all blocks again; without effect when no mask is applied."""
        if not self._is_applied:
            return
        self._is_applied = False
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        object.__delattr__(self._model.module, self._attribute)
        blocks = self._model.blocks
        for block, forward in self._shadowed.items():
            if forward is _MISSING:
                object.__delattr__(blocks[block], "forward")
            else:
                object.__setattr__(blocks[block], "forward", forward)

    def __enter__(self) -> Self:
        self.apply()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def masked(model: LoadedModel | nn.Module, mask: DepthMask) -> MaskedModel:
    """A context manager in which `model` runs only the blocks that `mask` keeps.

    Args:
        model: a loaded model, its vision side, or a transformers module. Text stack and vision side each take a mask.
        mask: which blocks run.

    Raises:
        MaskError: the mask is for another number of blocks.
    """
    return MaskedModel(model, mask)
