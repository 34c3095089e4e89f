"""A mask made permanent: a static module without the skipped blocks."""

import copy
from typing import Any

import torch
from torch import nn

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
    baked: nn.Module, example: dict[str, torch.Tensor], dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    """`torch.export` of a baked module, to be saved with `torch.export.save(program, "level.pt2")`.

    Args:
        baked: what `bake` returned.
        example: example inputs by name.
        dynamic_shapes: as `torch.export.export` takes it.
    """
    return torch.export.export(baked, (), example, dynamic_shapes=dynamic_shapes, strict=False)
