"""Our own CPU operators in place of ONNX Runtime's, in a graph that was lowered for it.

They read weights where they lie in the weight file, so that several levels share one copy without packing, and stream
them at the speed of memory in a decode step. What each computes is said in `blockexport_kernels.ort_cpu.reference`.
"""

import onnx_ir as ir
from onnx_ir.passes import common

from blockexport.export.lower.native.attention import replace_attention
from blockexport.export.lower.native.experts import replace_experts
from blockexport.export.lower.native.linear import replace_embeddings, replace_linear_layers
from blockexport.export.lower.native.replace import DOMAIN
from blockexport.export.lower.native.surroundings import take_in_norms, take_in_residuals

__all__ = ["DOMAIN", "TARGET", "use_native_operators"]

TARGET = "native"
_VERSION = 1


def use_native_operators(stock: ir.Model) -> ir.Model:
    """Replace linear layers, what stands around them, mixtures of experts, attention and quantised embeddings.

    Args:
        stock: a graph for ONNX Runtime's own operators, with or without boundary markers; it stays as it is.
    """
    model = stock.clone()
    steps = (
        *(replace_embeddings, replace_experts, replace_linear_layers),
        *(take_in_residuals, take_in_norms, replace_attention),
    )
    for step in steps:
        step(model.graph)
        # What was replaced still reads its inputs, and each step asks who reads them.
        common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    model.opset_imports[DOMAIN] = _VERSION
    return model
