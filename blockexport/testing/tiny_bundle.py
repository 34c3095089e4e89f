"""A bundle of a made-up encoder, written in milliseconds and without torch: a table of ids and one matrix a block."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from blockexport.bundle.layout import WEIGHTS_FILE, engine_file
from blockexport.bundle.manifest import EngineEntry, LevelEntry, Manifest, ManifestDraft
from blockexport.bundle.weights import write_weights
from blockexport.bundle.writer import BundleWriter
from blockexport.core.model import ModelSpec
from blockexport.export.graph_file import signature_of, to_bytes

NUM_BLOCKS = 3
KEPT = {"d3": (0, 1, 2), "d2": (0, 2)}
NUM_IDS = 50
TABLE = "table"
_HIDDEN = 96
_TARGET = "ort"
_OPSETS = {"": 23}


def tiny_weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """The table, which ONNX Runtime never packs, and the matrices `w0`, `w1`, ..., which it does."""
    rng = np.random.default_rng(seed)
    shapes = {TABLE: (NUM_IDS, _HIDDEN)} | {f"w{block}": (_HIDDEN, _HIDDEN) for block in range(NUM_BLOCKS)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def tiny_graph(weights: Mapping[str, NDArray[np.float32]], kept: tuple[int, ...]) -> ir.Model:
    """`input_ids` (batch, seq) looked up in the table, and multiplied by the matrix of each kept block."""
    values = {}
    for name in (TABLE, *(f"w{block}" for block in kept)):
        tensor = ir.Tensor(weights[name], name=name)
        kind = ir.TensorType(tensor.dtype)
        values[name] = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=kind, const_value=tensor)
    ids = ir.Value(name="input_ids", shape=ir.Shape(["batch", "seq"]), type=ir.TensorType(ir.DataType.INT64))
    nodes = [ir.node("Gather", [values[TABLE], ids])]
    for block in kept:
        nodes.append(ir.node("MatMul", [nodes[-1].outputs[0], values[f"w{block}"]]))
    output = nodes[-1].outputs[0]
    output.name, output.shape = "last_hidden_state", ir.Shape(["batch", "seq", _HIDDEN])
    output.type = ir.TensorType(ir.DataType.FLOAT)
    initializers = list(values.values())
    graph = ir.Graph([ids], [output], nodes=nodes, initializers=initializers, name="level", opset_imports=_OPSETS)
    return ir.Model(graph, ir_version=10)


def write_tiny_bundle(out: Path, seed: int = 0) -> Manifest:
    """Write the bundle; another seed gives another one."""
    weights = tiny_weights(seed)
    levels = []
    with BundleWriter(out) as writer:
        locations = write_weights(writer.path_for(WEIGHTS_FILE), weights)
        for name, kept in KEPT.items():
            graph = tiny_graph(weights, kept)
            signature = signature_of(graph)
            path = engine_file(name, _TARGET)
            writer.add_bytes(path, to_bytes(graph, locations))
            skipped = tuple(block for block in range(NUM_BLOCKS) if block not in kept)
            engine = EngineEntry(backend="onnxruntime", target=_TARGET, path=path, signature=signature)
            levels.append(LevelEntry(name=name, depth=len(kept), kept=kept, skipped=skipped, engines=(engine,)))
        spec = ModelSpec(
            name=f"tiny-{seed}",
            architecture="Tiny",
            kind="encoder",
            num_blocks=NUM_BLOCKS,
            digest=f"{seed:064x}",
            vocab_size=NUM_IDS,
            output="last_hidden_state",
        )
        return writer.commit(ManifestDraft(model=spec, num_blocks=NUM_BLOCKS, strategy="none", levels=tuple(levels)))
