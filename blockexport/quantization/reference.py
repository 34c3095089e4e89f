"""The eager model that an engine with smaller weights is held to: the same weights, in fp32."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from blockexport.models.loaded import LoadedModel
from blockexport.quantization.bf16 import Bf16Matrix
from blockexport.quantization.blockwise import QuantisedMatrix
from blockexport.quantization.graph import QuantisedGraph

_INT8_MAX = 127


def dequantised(model: LoadedModel, graph: QuantisedGraph) -> LoadedModel:
    """A copy of a model that computes with the weights that the graph's integers or bf16 numbers stand for.

    All other weights are shared with the original.
    """
    originals: dict[str, torch.Tensor] = dict(model.module.named_parameters(remove_duplicate=False))
    shared: dict[int, Any] = {id(t): t for t in [*model.module.parameters(), *model.module.buffers()]}
    for name, matrix in graph.matrices.items():
        shared[id(originals[name])] = nn.Parameter(_weight(matrix, originals[name], name in graph.transposed), False)
    module: nn.Module = copy.deepcopy(model.module, shared)
    return LoadedModel(module, model.spec, model.adapter, model.tokenizer_dir)


def _weight(matrix: QuantisedMatrix | Bf16Matrix, original: torch.Tensor, transposed: bool) -> torch.Tensor:
    array = matrix.dequantise()
    return torch.from_numpy(array.T.copy() if transposed else array).reshape(original.shape).to(original.dtype)


@contextmanager
def rounded_activations(model: LoadedModel, graph: QuantisedGraph) -> Iterator[None]:
    """Let whatever multiplies by quantised weights see its input as its engine does: rounded to int8 block by block.

    This is the arithmetic that `MatMulNBits` documents for `accuracy_level` 4. How far it moves the outputs says how
    far an engine may be off. Layers in bf16 compute in fp32, and see their input as it is.
    """
    with ExitStack() as hooks:
        for name, matrix in graph.matrices.items():
            path, _, weight = name.rpartition(".")
            owner: Any = model.module.get_submodule(path)
            if isinstance(matrix, Bf16Matrix) or isinstance(owner, nn.Embedding):
                continue
            if hasattr(owner, "is_concatenated") and weight == "down_proj":
                hooks.enter_context(_rounded_gates(owner, matrix.block_size))
            else:
                hook = _rounding_hook(matrix.block_size)
                hooks.callback(owner.register_forward_pre_hook(hook).remove)
        yield


def _rounding_hook(block_size: int) -> Any:
    def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, *rest = args
        return _rounded(hidden, block_size), *rest

    return hook


def _rounded(hidden: torch.Tensor, block_size: int) -> torch.Tensor:
    blocks = hidden.unflatten(-1, (-1, block_size))
    scales = (blocks.abs().amax(-1, keepdim=True) / _INT8_MAX).clamp(min=torch.finfo(hidden.dtype).tiny)
    rounded: torch.Tensor = ((blocks / scales).round() * scales).flatten(-2)
    return rounded


@contextmanager
def _rounded_gates(experts: Any, block_size: int) -> Iterator[None]:
    """What goes into the down projections of a mixture is made within its module, by a method of its own."""
    before = experts.config._experts_implementation  # noqa: SLF001  (the public setter knows models only)
    gate = experts._apply_gate  # noqa: SLF001
    experts._apply_gate = lambda gate_up: _rounded(gate(gate_up), block_size)  # noqa: SLF001
    # The loop over experts, unlike this, does not ask that method.
    experts.config._experts_implementation = "grouped_mm"  # noqa: SLF001
    try:
        yield
    finally:
        experts.config._experts_implementation = before  # noqa: SLF001
        del experts._apply_gate  # noqa: SLF001
