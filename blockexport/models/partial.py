"""Rerunning only the part of a model that a change of mask touches.

Two masks that agree on the first blocks give the same hidden states there. A recorded run holds what entered every
block, so a run with another mask starts at the first block on which the two differ. Embeddings and head are computed
again; no architecture has to be taken apart for it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from blockexport.core.masks import DepthMask
from blockexport.errors import MaskError
from blockexport.models.forward import run_model
from blockexport.models.loaded import LoadedModel
from blockexport.models.skip import active_mask, cache_hook

_MISSING = object()


@dataclass(frozen=True, slots=True, eq=False)
class RecordedRun:
    """One run of a batch, with what is needed to continue from any block.

    Attributes:
        inputs: the batch, by name.
        mask: the blocks that ran.
        outputs: the module's output object.
        entering: per block, kept or not, the hidden states (batch, seq, hidden) that reached it.
    """

    inputs: Mapping[str, torch.Tensor]
    mask: DepthMask
    outputs: Any
    entering: tuple[torch.Tensor, ...]


def record(model: LoadedModel, inputs: Mapping[str, torch.Tensor], mask: DepthMask | None = None) -> RecordedRun:
    """Run a batch and keep what entered every block.

    Args:
        model: a loaded model.
        inputs: the batch, by name.
        mask: blocks that run; all of them when None.

    Raises:
        MaskError: the mask does not fit the model, or a mask is already applied to it.
    """
    return _run(model, inputs, mask or DepthMask.full(model.num_blocks), 0, ())


def rerun(model: LoadedModel, run: RecordedRun, mask: DepthMask) -> RecordedRun:
    """Run the batch of an earlier run with another mask, executing no block before the first that differs.

    Dropping block i from the earlier run's mask executes the kept blocks behind i and nothing else.

    Raises:
        MaskError: the mask does not fit the model, or a mask is already applied to it.
    """
    model.check_mask(mask)
    pairs = zip(run.mask.to_bools(), mask.to_bools(), strict=True)
    first = next((i for i, (was, now) in enumerate(pairs) if was != now), mask.num_blocks)
    if first == mask.num_blocks:
        return run
    return _run(model, run.inputs, mask, first, run.entering)


def _run(
    model: LoadedModel,
    inputs: Mapping[str, torch.Tensor],
    mask: DepthMask,
    first: int,
    known: tuple[torch.Tensor, ...],
) -> RecordedRun:
    """Run blocks from `first` on; `known` holds what enters the blocks up to it."""
    model.check_mask(mask)
    kept = mask.to_bools()
    entering: list[torch.Tensor] = list(known[: first + 1])

    def replace(block: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if block < first:
                return hidden_states
            if block == len(entering):
                entering.append(hidden_states)
            arriving = entering[block]
            return original(arriving, *args, **kwargs) if kept[block] else arriving

        return forward

    patches = {i: replace(i, block.forward) for i, block in enumerate(model.blocks)}
    with torch.no_grad(), _patched(model, mask, patches):
        outputs = run_model(model, inputs)
    return RecordedRun(inputs, mask, outputs, tuple(entering))


@contextmanager
def skipping(model: LoadedModel, mask: DepthMask) -> Iterator[None]:
    """Let `model` run only what `mask` keeps, cached generation included, for code that calls the model itself.

    Raises:
        MaskError: the mask does not fit the model, or a mask is already applied to it.
    """
    model.check_mask(mask)

    def pass_through(hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        return hidden_states

    hook = cache_hook(mask, is_decoder=model.spec.kind == "decoder")
    with _patched(model, mask, dict.fromkeys(mask.skipped, pass_through)):
        handle = model.module.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def _patched(model: LoadedModel, mask: DepthMask, forwards: Mapping[int, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward of some blocks, and put back whatever was there, also after an error."""
    module, blocks = model.module, model.blocks
    attribute = active_mask(model.spec.block_path)
    if hasattr(module, attribute):
        msg = "this model has a mask applied; remove it first, then score or select on the whole model"
        raise MaskError(msg)
    # Whoever has shadowed a forward before us, e.g. accelerate, finds it again.
    before = {i: vars(blocks[i]).get("forward", _MISSING) for i in forwards}
    object.__setattr__(module, attribute, mask)
    try:
        for i, forward in forwards.items():
            object.__setattr__(blocks[i], "forward", forward)
        yield
    finally:
        object.__delattr__(module, attribute)
        for i, forward in before.items():
            if forward is _MISSING:
                vars(blocks[i]).pop("forward", None)
            else:
                object.__setattr__(blocks[i], "forward", forward)
