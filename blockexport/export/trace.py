"""Full-depth `torch.export` of a model, with every block's boundaries marked, attention and experts left open.

The trace is taken from the stock transformers model: its attention and its experts are replaced through transformers'
own interfaces for them, its cache by one that hands new keys and values on to that attention, its blocks get hooks.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from transformers import AttentionInterface

from blockexport.core.model import ModelKind
from blockexport.errors import ExportError
from blockexport.export import ops
from blockexport.export.experts import open_experts
from blockexport.export.programs import Context, attention_function, decoder_case, single_pass_case
from blockexport.models.loaded import LoadedModel

_ATTENTION = "blockexport"
_MAX_REASON = 200
# Arguments of a program's forward in front of the starred ones.
_NUM_FIXED: dict[ModelKind, int] = {"decoder": 4, "encoder": 1, "vision": 1}


def block_unit(block: int) -> str:
    """Name of a block's boundary markers."""
    return f"block.{block}"


@dataclass(frozen=True, slots=True)
class MarkedProgram:
    """A traced model with boundary markers.

    Attributes:
        program: the exported program; its calls to `blockexport::*` are still opaque.
        input_names: graph inputs, in order.
        output_names: graph outputs, in order.
        dynamic_axes: per input name, axis to the name of its dynamic size.
        output_axes: the same for the first output; cache rows have the axes of their inputs.
    """

    program: torch.export.ExportedProgram
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic_axes: dict[str, dict[int, str]]
    output_axes: dict[str, dict[int, str]]


def trace(model: LoadedModel) -> MarkedProgram:
    """Trace a model at full depth.

    Args:
        model: a decoder, encoder or vision model, or a vision side; it is left as it was.

    Returns:
        The marked program, with batch, sequence and cache capacity dynamic.

    Raises:
        ExportError: the model's code depends on values, or does what `torch.export` cannot follow.
    """
    context = Context()
    module = _private_copy(model)
    is_decoder = model.spec.kind == "decoder"
    AttentionInterface.register(_ATTENTION, attention_function(context, is_decoder=is_decoder))
    _set_attention(module)
    open_experts(module)
    build = decoder_case if is_decoder else single_pass_case
    with _in_place_of(module):
        wrapper, args, names, axes, outputs = build(model, module, context)
    shapes = _shapes(names, axes, model.spec.kind)
    try:
        with _boundaries(model, module), torch.no_grad(), _in_place_of(module):
            program = torch.export.export(wrapper.eval(), args, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        # Whatever the model's own code does may fail under tracing, with errors of many packages.
        reason = " ".join(str(error).split())[:_MAX_REASON]
        msg = (
            f"{model.spec.architecture} cannot be traced: {type(error).__name__}: {reason}; "
            "a branch on values, such as dynamic RoPE scaling, has no static graph"
        )
        raise ExportError(msg) from error
    output_axes = {0: "batch"}
    if is_decoder:
        output_axes[1] = "kept_positions"
    elif model.spec.kind == "encoder" and model.spec.output == "last_hidden_state":
        output_axes[1] = "seq"
    return MarkedProgram(program, names, outputs, axes, {outputs[0]: output_axes})


def _private_copy(model: LoadedModel) -> nn.Module:
    """A copy of the module tree around the same weights, so that tracing leaves the caller's model alone."""
    module = model.module
    shared: dict[int, Any] = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    copied: nn.Module = copy.deepcopy(module, shared)
    model.adapter.prepare_for_export(copied)
    return copied


def _in_place_of(module: nn.Module) -> AbstractContextManager[Any]:
    """Examples, and what the traced code makes by itself, lie on the device that the model lies on."""
    device = next(module.parameters()).device
    return nullcontext() if device.type == "cpu" else torch.device(device)


def _set_attention(module: nn.Module) -> None:
    configs = (getattr(part, "config", None) for part in module.modules())
    for config in filter(None, configs):
        config._attn_implementation = _ATTENTION  # noqa: SLF001  (the setter checks against installed kernels only)


@contextmanager
def _boundaries(model: LoadedModel, module: nn.Module) -> Iterator[None]:
    handles = []
    for index, block in enumerate(model.adapter.blocks(module)):
        unit = block_unit(index)

        def enter(_: nn.Module, args: Any, kwargs: Any, unit: str = unit) -> Any:
            if args:
                return (ops.boundary(args[0], unit, "in"), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": ops.boundary(kwargs["hidden_states"], unit, "in")}

        def leave(_: nn.Module, args: Any, output: torch.Tensor, unit: str = unit) -> Any:
            return ops.boundary(output, unit, "out")

        handles += [block.register_forward_pre_hook(enter, with_kwargs=True), block.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shapes(names: tuple[str, ...], axes: dict[str, dict[int, str]], kind: ModelKind) -> Any:
    dims = {size: Dim.DYNAMIC for per_input in axes.values() for size in per_input.values()}
    specs = [{axis: dims[size] for axis, size in axes[name].items()} for name in names]
    # torch.export wants the shapes of starred arguments as one nested entry, if there are any.
    num_fixed = _NUM_FIXED[kind]
    starred = tuple(specs[num_fixed:])
    return (*specs[:num_fixed], starred) if starred else tuple(specs)
