"""The marked graphs that depths are cut from, one source for each precision."""

from dataclasses import dataclass
from typing import Self

import onnx_ir as ir

from blockexport.core.precision import FP32, Precision
from blockexport.export.lower import native, ort
from blockexport.masking.oracle import Oracle
from blockexport.models.loaded import LoadedModel
from blockexport.quantization.graph import QuantisedGraph, quantise_graph
from blockexport.quantization.reference import dequantised, rounded_activations


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What the levels of one precision are cut from and held to.

    Attributes:
        precision: of the weights.
        graphs: marked graphs by lowering target; they read the same weights.
        quantised: what the stored weights stand for; None for fp32.
    """

    precision: Precision
    graphs: dict[str, ir.Model]
    quantised: QuantisedGraph | None

    @classmethod
    def of(cls, marked: ir.Model, precision: Precision) -> Self:
        """Quantise a marked graph once, before any depth is cut, and lower it for every kind of operators."""
        quantised = None if precision == FP32 else quantise_graph(marked, precision)
        stock = marked if quantised is None else quantised.model
        return cls(precision, {ort.TARGET: stock, native.TARGET: native.use_native_operators(stock)}, quantised)

    def oracle(self, model: LoadedModel, seed: int) -> Oracle:
        """The eager reference, with the weights that the engines have."""
        graph = self.quantised
        if graph is None:
            return Oracle(model, seed)
        reference = dequantised(model, graph)
        if not self.precision.is_quantised:
            return Oracle(reference, seed)
        return Oracle(reference, seed, lambda rounded: rounded_activations(rounded, graph))
