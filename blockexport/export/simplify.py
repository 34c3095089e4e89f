"""Clean-up of a freshly lowered graph that keeps every weight under its checkpoint name and in its checkpoint layout.

The exporter's own optimiser folds weight transposes into anonymous copies and merges equal weights of different
blocks; both would lose track of which block a tensor belongs to, and the first would store tied weights twice.
"""

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import onnx_fusions, rewrite
from onnxscript.rewriter.ort_fusions.fused_matmul_rule_sets import fused_matmul_rule_sets

from blockexport.core.signature import WRAPPER

# Shape constants have a handful of entries; nothing that a checkpoint stores is this small.
_MAX_SHAPE_CONSTANT = 8
_FOLD_LIMIT = 1024


def _should_fold(node: ir.Node) -> bool | None:
    if node.op_type == "Transpose" and node.inputs[0] is not None and node.inputs[0].is_initializer():
        return False
    return None


def simplify(model: ir.Model) -> None:
    """Fold shape arithmetic, fuse norms and rotary embeddings, drop repeated subexpressions; in place."""
    for _ in range(2):
        fold_constants(
            model,
            onnx_shape_inference=False,
            input_size_limit=_FOLD_LIMIT,
            output_size_limit=_FOLD_LIMIT,
            should_fold=_should_fold,
        )
        rewrite(model)
    onnx_fusions.fuse(model)
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(size_limit=_MAX_SHAPE_CONSTANT),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.NameFixPass(),
    )(model)
    _restore_names(model)


def use_weights_as_stored(model: ir.Model) -> None:
    """Let ONNX Runtime multiply by a weight's transpose, so that no transposed copy is needed; in place."""
    rewrite(model, fused_matmul_rule_sets())
    common.RemoveUnusedNodesPass()(model)


def _restore_names(model: ir.Model) -> None:
    """Call each weight what the checkpoint calls it: without the name of the module traced around the model."""
    for name in list(model.graph.initializers):
        if name.startswith(WRAPPER):
            value = model.graph.initializers.pop(name)
            value.name = name.removeprefix(WRAPPER)
            model.graph.register_initializer(value)
