"""Traces kept between builds: content-addressed, without weights.

Tracing and lowering take most of a build's time and depend on the model and the tools only. What is kept is the
marked graph; its weights are taken from the model by name, so an entry is a few hundred kilobytes.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor

from blockexport.core.expert_weights import source_of
from blockexport.core.hardware import installed_versions
from blockexport.core.jsonio import write_atomically
from blockexport.core.model import ModelSpec
from blockexport.export.experts import interleaved
from blockexport.export.trace import MarkedProgram, trace
from blockexport.models.loaded import LoadedModel

_TOOLS = ("torch", "transformers", "onnx-ir", "onnxscript")


def marked_graph(
    model: LoadedModel, target: str, lower: Callable[[MarkedProgram], ir.Model], cache_folder: Path | None
) -> ir.Model:
    """The model's marked graph for a target, from the cache if it is there.

    Args:
        model: the unpruned model.
        target: name of the lowering.
        lower: the lowering itself.
        cache_folder: where traces are kept; None to trace in any case.
    """
    if cache_folder is None:
        return lower(trace(model))
    path = cache_folder / "traces" / f"{_key(model.spec, target)}.onnx"
    if path.is_file():
        return _attach(ir.load(path), model)
    graph = lower(trace(model))
    write_atomically(path, _detached(graph, model))
    return graph


def _key(spec: ModelSpec, target: str) -> str:
    state = hashlib.sha256(f"{target}:{spec.kind}:{spec.digest}:{installed_versions(_TOOLS)}".encode())
    # The exporting code is part of what makes a trace; a version number alone would keep stale ones in development.
    for folder in ("export", "models"):
        for source in sorted((Path(__file__).parent.parent / folder).rglob("*.py")):
            state.update(source.read_bytes())
    return state.hexdigest()


def _weights(model: LoadedModel) -> dict[str, torch.Tensor]:
    return dict(model.module.named_parameters(remove_duplicate=False)) | dict(model.module.named_buffers())


def _detached(graph: ir.Model, model: LoadedModel) -> bytes:
    """The graph's bytes with every tensor of the model reduced to its name, type and shape."""
    names = _weights(model)
    emptied = graph.clone()
    for name, value in emptied.graph.initializers.items():
        if (source_of(name) or name) in names and value.const_value is not None:
            value.const_value = ir.ExternalTensor(
                location="weights",
                offset=0,
                length=value.const_value.nbytes,
                dtype=value.const_value.dtype,
                shape=ir.Shape(value.const_value.shape.numpy()),
                name=name,
            )
    serialised: bytes = ir.to_proto(emptied).SerializeToString(deterministic=True)
    return serialised


def _attach(graph: ir.Model, model: LoadedModel) -> ir.Model:
    weights = _weights(model)
    for name, value in graph.graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            source = source_of(name)
            tensor = TorchTensor(weights[source or name].detach(), name=source or name)
            value.const_value = tensor if source is None else interleaved(tensor)
    return graph
