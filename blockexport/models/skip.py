"""What skipping a block means, in one place: its input is its output, and its cache row is empty."""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DummyLayer, DynamicCache

from blockexport.core.masks import DepthMask

ACTIVE_MASK = "_blockexport_mask"
"""How attributes begin that a module carries while some of its blocks are skipped in place."""


def active_mask(block_path: str) -> str:
    """The attribute for one list of blocks; a model that reads pictures has two, and each may have a mask."""
    return f"{ACTIVE_MASK}.{block_path}"


class SkippedBlock(nn.Module):
    """Stands where a block was and hands its input on."""

    def forward(self, hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """Return `hidden_states` (batch, seq, hidden) as it came."""
        return hidden_states


def skip_cache_rows(cache: Cache, mask: DepthMask) -> None:
    """Put a `DummyLayer` into the cache row of each skipped block.

    transformers reads the length of the past off row 0 or off the first row of a kind. An empty row there would say
    that nothing was seen yet, which gives wrong positions and masks; dummy rows are passed over.
    """
    while cache.layer_class_to_replicate is not None and len(cache.layers) < mask.num_blocks:
        cache.layers.append(cache.layer_class_to_replicate())
    for block in mask.skipped:
        if not isinstance(cache.layers[block], DummyLayer):
            cache.layers[block] = DummyLayer()


def cache_hook(mask: DepthMask, *, is_decoder: bool) -> Any:
    """Forward pre-hook that prepares the cache passed to, or about to be made by, a model."""

    def prepare(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        config: Any = module.config
        cache = kwargs.get("past_key_values")
        if cache is None and is_decoder:
            use_cache = kwargs.get("use_cache")
            if use_cache is None:
                use_cache = getattr(config, "use_cache", False)
            if use_cache:
                cache = DynamicCache(config=config)
        if not isinstance(cache, Cache):
            return None
        skip_cache_rows(cache, mask)
        return args, {**kwargs, "past_key_values": cache}

    return prepare
