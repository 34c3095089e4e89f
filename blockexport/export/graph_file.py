"""ONNX files that keep no weights of their own: every tensor of the checkpoint is a range of the shared file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from blockexport.bundle.layout import WEIGHTS_FILE
from blockexport.bundle.weights import TensorLocation
from blockexport.core.signature import Signature, TensorSpec
from blockexport.errors import ExportError

# Anything this small is arithmetic on shapes, which runtimes want to see in the graph itself.
_MAX_INLINE_BYTES = 64
# Tracing notes down source lines of the machine it ran on; only the module path is of use to others.
_KEPT_METADATA = "pkg.torch.onnx.name_scopes"


def shared_tensors(model: ir.Model) -> dict[str, NDArray[Any]]:
    """Every initializer that belongs in the weight file, by name, in graph order."""
    tensors = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            msg = f"initializer {name} of the graph has no value; trace the model again"
            raise ExportError(msg)
        if value.const_value.nbytes > _MAX_INLINE_BYTES:
            tensors[name] = value.const_value.numpy()
    return tensors


def to_bytes(model: ir.Model, locations: Mapping[str, TensorLocation]) -> bytes:
    """Serialise a graph whose shared tensors point into the weight file beside it; the same model, the same bytes.

    Args:
        model: a cut model; its tensors are replaced by references.
        locations: where each shared tensor lies.
    """
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _MAX_INLINE_BYTES:
            continue
        where = locations[name]
        value.const_value = ir.ExternalTensor(
            location=WEIGHTS_FILE,
            offset=where.offset,
            length=where.size_bytes,
            dtype=tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
        )
    _strip_notes(model)
    serialised: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return serialised


def signature_of(model: ir.Model) -> Signature:
    """Inputs and outputs of a graph."""
    return Signature(
        inputs=tuple(_spec(value) for value in model.graph.inputs),
        outputs=tuple(_spec(value) for value in model.graph.outputs),
    )


def _spec(value: ir.Value) -> TensorSpec:
    if value.shape is None or value.dtype is None or value.name is None:
        msg = f"graph value {value.name} has no shape or type; trace the model again"
        raise ExportError(msg)
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return TensorSpec(name=value.name, dtype=np.dtype(value.dtype.numpy()).name, shape=shape)


def _strip_notes(model: ir.Model) -> None:
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        scopes = node.metadata_props.get(_KEPT_METADATA)
        node.metadata_props.clear()
        node.doc_string = None
        if scopes is not None:
            node.metadata_props[_KEPT_METADATA] = scopes
        for output in node.outputs:
            output.metadata_props.clear()


def save(model: ir.Model, path: Path, locations: Mapping[str, TensorLocation]) -> None:
    """Write `to_bytes` to a file."""
    path.write_bytes(to_bytes(model, locations))
