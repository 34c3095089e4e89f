"""Watching what goes into and comes out of every block."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from blockexport.models.loaded import LoadedModel

Watcher = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Called with the block's index and the hidden states (batch, seq, hidden) before and after it."""


@contextmanager
def observed(model: LoadedModel, watch: Watcher) -> Iterator[None]:
    """Call `watch` each time a block of `model` has run."""
    with ExitStack() as hooks:
        for i, block in enumerate(model.blocks):
            hooks.callback(block.register_forward_hook(_hook(i, watch), with_kwargs=True).remove)
        yield


def _hook(block: int, watch: Watcher) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        entered = args[0] if args else kwargs["hidden_states"]
        watch(block, entered, output[0] if isinstance(output, tuple) else output)

    return hook
