"""One mixture of gated experts in every form that an engine could run it, as small graphs over random weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from blockexport_kernels.ort_cpu.library import DOMAIN

NUM_EXPERTS, CHOSEN = 64, 8
BITS = {"fp32": 32, "int8": 8, "int4": 4}
BLOCK = 32
_CONTRIB = "com.microsoft"


@dataclass(frozen=True)
class Shape:
    """A mixture: `width` of its tokens, `inner` of each expert."""

    width: int
    inner: int
    precision: str

    @property
    def active_bytes(self) -> int:
        """Weights, and their scales, of the experts that one token is sent to."""
        weights = CHOSEN * 3 * self.width * self.inner
        bits = BITS[self.precision]
        return weights * 4 if bits == 32 else weights * bits // 8 + weights // BLOCK * 4


def random_weights(shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Stacked matrices; rows of gates and of what they gate lie in turn."""
    sizes = {"gate_up": (2 * shape.inner, shape.width), "down": (shape.width, shape.inner)}
    arrays = {}
    for name, (rows, columns) in sizes.items():
        if shape.precision == "fp32":
            weights = rng.standard_normal((NUM_EXPERTS, rows, columns), dtype=np.float32)
            weights *= np.float32(columns**-0.5)
            arrays[name] = weights
        else:
            packed = columns * BITS[shape.precision] // 8
            arrays[name] = rng.integers(0, 256, (NUM_EXPERTS, rows, packed), dtype=np.uint8)
            scales = rng.random((NUM_EXPERTS, rows, columns // BLOCK), dtype=np.float32)
            arrays[f"{name}.scales"] = scales * np.float32(columns**-0.5 * 2 / 2 ** BITS[shape.precision])
    return arrays


class _Builder:
    """Nodes of a graph with inputs x (tokens, width), experts and weights (tokens, chosen)."""

    def __init__(self, shape: Shape, tokens: int, arrays: Mapping[str, np.ndarray]) -> None:
        self.shape, self.tokens = shape, tokens
        self.x = _value("x", ir.DataType.FLOAT, (tokens, shape.width))
        self.experts = _value("experts", ir.DataType.INT64, (tokens, CHOSEN))
        self.weights = _value("weights", ir.DataType.FLOAT, (tokens, CHOSEN))
        self._nodes: list[ir.Node] = []
        self._arrays = dict(arrays)
        self._constants: dict[str, ir.Value] = {}

    def weight(self, name: str) -> ir.Value:
        return self._constant(name, self._arrays[name])

    def numbers(self, *values: int) -> ir.Value:
        return self._constant(f"numbers{len(self._constants)}", np.array(values, np.int64))

    def fill(self, value: float) -> ir.Value:
        return self._constant("fill", np.full((self.tokens, NUM_EXPERTS), value, np.float32))

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        if name not in self._constants:
            tensor = ir.tensor(array, name=name)
            kind = ir.TensorType(tensor.dtype)
            self._constants[name] = ir.Value(name=name, shape=tensor.shape, type=kind, const_value=tensor)
        return self._constants[name]

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        return self.ops(op_type, *inputs, domain=domain, **attributes)[0]

    def ops(self, op_type: str, *inputs: ir.Value | None, domain: str = "", count: int = 1, **settings: Any) -> Any:
        node = ir.node(op_type, inputs, settings, domain=domain, num_outputs=count)
        self._nodes.append(node)
        for number, output in enumerate(node.outputs):
            output.name = f"node{len(self._nodes)}.{number}"
        return node.outputs

    def model(self, output: ir.Value) -> ir.Model:
        output.shape, output.type = ir.Shape([self.tokens, self.shape.width]), ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            [self.x, self.experts, self.weights],
            [output],
            nodes=self._nodes,
            initializers=list(self._constants.values()),
            opset_imports={"": 21, _CONTRIB: 1, DOMAIN: 1},
            name="mixture",
        )
        return ir.Model(graph, ir_version=10)


def _value(name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _gathered(b: _Builder) -> ir.Value:
    """What transformers' `batched_mm` exports to: the weights of each token's experts, copied side by side."""
    inner, width = b.shape.inner, b.shape.width
    chosen = b.op("Reshape", b.experts, b.numbers(-1))
    spread = b.op("Expand", b.op("Unsqueeze", b.x, b.numbers(1)), b.numbers(b.tokens, CHOSEN, width))
    column = b.op("Reshape", spread, b.numbers(-1, width, 1))
    product = b.op("MatMul", b.op("Gather", b.weight("gate_up"), chosen, axis=0), column)
    pairs = b.op("Reshape", product, b.numbers(-1, inner, 2))
    gate, up = b.ops("Split", pairs, count=2, axis=2, num_outputs=2)
    hidden = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)
    made = b.op("MatMul", b.op("Gather", b.weight("down"), chosen, axis=0), hidden)
    by_token = b.op("Reshape", made, b.numbers(b.tokens, CHOSEN, width))
    weighted = b.op("Mul", by_token, b.op("Unsqueeze", b.weights, b.numbers(2)))
    return b.op("ReduceSum", weighted, b.numbers(1), keepdims=0)


def _all_experts(b: _Builder) -> ir.Value:
    """Every token through every expert, weighted with zero where it was not chosen: no copy, all weights read."""
    inner = b.shape.inner
    shares = b.op("ScatterElements", b.fill(0.0), b.experts, b.weights, axis=1)
    product = b.op("FusedMatMul", b.op("Unsqueeze", b.x, b.numbers(0)), b.weight("gate_up"), domain=_CONTRIB, transB=1)
    pairs = b.op("Reshape", product, b.numbers(NUM_EXPERTS, b.tokens, inner, 2))
    gate, up = b.ops("Split", pairs, count=2, axis=3, num_outputs=2)
    hidden = b.op("Squeeze", b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up), b.numbers(3))
    share = b.op("Unsqueeze", b.op("Transpose", shares, perm=[1, 0]), b.numbers(2))
    made = b.op("FusedMatMul", b.op("Mul", hidden, share), b.weight("down"), domain=_CONTRIB, transB=1)
    return b.op("ReduceSum", made, b.numbers(0), keepdims=0)


def _stock(b: _Builder) -> ir.Value:
    """ONNX Runtime's operator, as `blockexport.export.lower.ort` writes it."""
    shares = b.op("ScatterElements", b.fill(-np.inf), b.experts, b.op("Log", b.weights), axis=1)
    settings: dict[str, Any] = {"k": CHOSEN, "normalize_routing_weights": 1, "activation_type": "swiglu"}
    settings |= {"activation_alpha": 1.0, "activation_beta": 0.0, "swiglu_fusion": 1}
    if b.shape.precision == "fp32":
        inputs = (b.x, shares, b.weight("gate_up"), None, b.weight("down"))
        mixed = b.op("MoE", *inputs, domain=_CONTRIB, **settings)
    else:
        settings |= {"expert_weight_bits": BITS[b.shape.precision], "block_size": BLOCK, "accuracy_level": 4}
        names = ("gate_up", "gate_up.scales", None, "down", "down.scales")
        matrices = [None if name is None else b.weight(name) for name in names]
        mixed = b.op("QMoE", b.x, shares, *matrices, domain=_CONTRIB, weights_prepacked=0, **settings)
    return b.op("Mul", mixed, b.op("ReduceSum", b.weights, b.numbers(1), keepdims=1))


def _native(b: _Builder) -> ir.Value:
    """Our operator."""
    if b.shape.precision == "fp32":
        inputs = (b.x, b.experts, b.weights, b.weight("gate_up"), b.weight("down"))
        return b.op("GatedExperts", *inputs, domain=DOMAIN)
    names = ("gate_up", "gate_up.scales", "down", "down.scales")
    settings = {"K": b.shape.width, "bits": BITS[b.shape.precision], "block_size": BLOCK}
    matrices = [b.weight(name) for name in names]
    return b.op("GatedExpertsNBits", b.x, b.experts, b.weights, *matrices, domain=DOMAIN, **settings)


FORMS: dict[str, Callable[[_Builder], ir.Value]] = {
    "gathered": _gathered,
    "all experts": _all_experts,
    "stock": _stock,
    "native": _native,
}


def open_form(
    form: str, shape: Shape, tokens: int, arrays: Mapping[str, np.ndarray], *, folder: Path, library: Path, threads: int
) -> ort.InferenceSession:
    """A session of one form; its weights are a file in the folder."""
    builder = _Builder(shape, tokens, arrays)
    path = folder / f"{form}-{shape.precision}-{tokens}.onnx"
    ir.save(builder.model(FORMS[form](builder)), path, external_data=f"{path.stem}.bin")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Else the threads of one form would still spin when another is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
