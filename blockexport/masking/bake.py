"""A mask made permanent: a static module without the skipped blocks."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from blockexport.core.masks import DepthMask
from blockexport.models.loaded import LoadedModel, as_loaded
from blockexport.models.skip import SkippedBlock, cache_hook


def bake(model: LoadedModel | nn.Module, mask: DepthMask) -> nn.Module:
    """Copy a model without the blocks that `mask` skips; kept weights are shared with the original, not copied.

    Every kept block stays at its original index, so per-block settings (sliding windows, rope lists) and cache rows
    keep their meaning. The result has no branch on the mask: `torch.compile(fullgraph=True)` and `torch.export` see
    the kept blocks only. For a compiled decode loop pass `StaticCache(config=baked.config, ...)`.

    Args:
        model: a loaded model, or a transformers module.
        mask: which blocks stay.

    Returns:
        A module of the same class and with the same forward as the original.

    Raises:
        MaskError: the mask is for another number of blocks.
    """
    loaded = as_loaded(model)
    loaded.check_mask(mask)
    # Tensors map to themselves, so deepcopy rebuilds the module tree around the same storage.
    shared: dict[int, Any] = {id(t): t for t in [*loaded.module.parameters(), *loaded.module.buffers()]}
    originals = list(loaded.blocks)
    skipped = {id(originals[block]): SkippedBlock() for block in mask.skipped}
    baked: nn.Module = copy.deepcopy(loaded.module, shared | skipped)
    if loaded.spec.kind == "decoder":
        config: Any = baked.config
        # Caches built from this configuration then hold no row for a skipped block.
        config.get_text_config(decoder=True).kv_sharing_modes = [None if kept else "reuse" for kept in mask.to_bools()]
        baked.register_forward_pre_hook(cache_hook(mask, is_decoder=True), with_kwargs=True)
    return baked.eval()


def export_program(
    baked: nn.Module, example: Mapping[str, torch.Tensor], dynamic_shapes: Any = None
) -> torch.export.ExportedProgram:
    """`torch.export` of a baked module, to be saved with `torch.export.save(program, "level.pt2")`.

    The program takes whole inputs and keeps no cache.

    Args:
        baked: what `bake` returned.
        example: example inputs by name; at least two rows, or the batch size is taken for a constant.
        dynamic_shapes: as `torch.export.export` takes it; None for every batch size and every number of tokens.
    """
    if dynamic_shapes is None:
        dynamic_shapes = {name: _dynamic_axes(tensor) for name, tensor in example.items()}
    config: Any = baked.config
    caches = getattr(config, "use_cache", None)
    if caches is not None:
        config.use_cache = False
    try:
        with torch.no_grad():
            return torch.export.export(baked, (), dict(example), dynamic_shapes=dynamic_shapes, strict=False)
    finally:
        if caches is not None:
            config.use_cache = caches


def _dynamic_axes(tensor: torch.Tensor) -> dict[int, Any]:
    """The batch, and for token ids and masks (batch, tokens) the tokens; pictures have one size."""
    is_text = not tensor.is_floating_point()
    return dict.fromkeys(range(2 if is_text else 1), Dim.DYNAMIC)
