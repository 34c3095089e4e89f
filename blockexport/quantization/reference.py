"""The eager model that a quantised engine is held to: the same weights, dequantised."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from blockexport.models.loaded import LoadedModel
from blockexport.quantization.blockwise import QuantisedMatrix
from blockexport.quantization.graph import QuantisedGraph

_INT8_MAX = 127


def dequantised(model: LoadedModel, graph: QuantisedGraph) -> LoadedModel:
    """A copy of a model that computes with the weights that the graph's integers stand for.

    Weights that were not quantised are shared with the original.
    """
    originals: dict[str, torch.Tensor] = dict(model.module.named_parameters(remove_duplicate=False))
    shared: dict[int, Any] = {id(t): t for t in [*model.module.parameters(), *model.module.buffers()]}
    for name, matrix in graph.matrices.items():
        shared[id(originals[name])] = nn.Parameter(_weight(matrix, originals[name], name in graph.transposed), False)
    module: nn.Module = copy.deepcopy(model.module, shared)
    return LoadedModel(module, model.spec, model.adapter, model.tokenizer_dir)


def _weight(matrix: QuantisedMatrix, original: torch.Tensor, transposed: bool) -> torch.Tensor:
    array = matrix.dequantise()
    return torch.from_numpy(array.T.copy() if transposed else array).to(original.dtype)


@contextmanager
def rounded_activations(model: LoadedModel, graph: QuantisedGraph) -> Iterator[None]:
    """Let every quantised linear layer see its input as its engine does: rounded to int8, one scale for each block.

    This is the arithmetic that `MatMulNBits` documents for `accuracy_level` 4. How far it moves the outputs says how
    far an engine may be off.
    """
    with ExitStack() as hooks:
        for name, matrix in graph.matrices.items():
            owner = model.module.get_submodule(name.rpartition(".")[0])
            if not isinstance(owner, nn.Embedding):
                hook = _rounding_hook(matrix.block_size)
                hooks.callback(owner.register_forward_pre_hook(hook).remove)
        yield


def _rounding_hook(block_size: int) -> Any:
    def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, *rest = args
        blocks = hidden.unflatten(-1, (-1, block_size))
        scales = (blocks.abs().amax(-1, keepdim=True) / _INT8_MAX).clamp(min=torch.finfo(hidden.dtype).tiny)
        return ((blocks / scales).round() * scales).flatten(-2), *rest

    return hook
