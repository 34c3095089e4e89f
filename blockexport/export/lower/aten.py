"""Lowering for torch's own compilers: one depth as an exported program of aten operators, its cache updated in place.

Depths are cut from the same marked program as those for ONNX, by the same rewiring. The cut graph is exported once
more, since attention has become several operators.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config
from torch.utils import _pytree as pytree

from blockexport.core.signature import WRAPPER, Signature, TensorSpec
from blockexport.errors import ExportError
from blockexport.export.lower import attention
from blockexport.export.trace import MarkedProgram

_OPS: Any = torch.ops
_SYMBOLIC_SHAPES: Any = _config
_BOUNDARY = _OPS.blockexport.boundary.default
_ATTENTION = {
    _OPS.blockexport.cached_attention.default: attention.cached_attention,
    _OPS.blockexport.full_attention.default: attention.full_attention,
}
# Statements about tensors that a retrace makes anew, among them that they lie where they were traced.
_ASSERTION = _OPS.aten._assert_tensor_metadata.default  # noqa: SLF001  (the operator's public name)


@dataclass(frozen=True, slots=True, eq=False)
class AtenProgram:
    """One depth.

    Attributes:
        program: takes the inputs in order; gives the first output only, and writes into the cache rows.
        signature: names, types and shapes.
        weights: by name in the weight file, what the program reads.
    """

    program: ExportedProgram
    signature: Signature
    weights: dict[str, torch.Tensor]


def lower(
    marked: MarkedProgram,
    skipped_units: Iterable[str],
    *,
    sizes: Mapping[str, int] | None = None,
) -> AtenProgram:
    """Cut one depth out of a marked program, which stays as it is.

    Args:
        marked: traced at full depth.
        skipped_units: names of the units to cut out.
        sizes: axes with one size, such as `{"batch": 1, "seq": 1}` for decode steps of one row; others stay dynamic.

    Raises:
        ExportError: a unit has no markers, or the model has an operator that torch cannot run.
    """
    module, names = _cut(marked, set(skipped_units))
    sizes = sizes or {}
    fixed = {name: _fixed(marked.dynamic_axes[name], sizes) for name in names}
    samples = dict(zip(marked.input_names, pytree.tree_leaves(marked.program.example_inputs), strict=True))
    example = tuple(_resized(samples[name], fixed[name]) for name in names)
    dynamic = tuple({a: Dim.DYNAMIC for a in marked.dynamic_axes[name] if a not in fixed[name]} for name in names)
    # Without, sizes of 0 and 1 are taken to be impossible: one token, one row, no token that is kept.
    with _SYMBOLIC_SHAPES.patch(backed_size_oblivious=True), torch.no_grad():
        program = torch.export.export(module, example, dynamic_shapes=dynamic, strict=False)
    weights = {name.removeprefix(WRAPPER): tensor for name, tensor in (program.state_dict | program.constants).items()}
    return AtenProgram(program, _signature(marked, names, example, sizes), weights)


def _cut(marked: MarkedProgram, skipped: set[str]) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The module of one depth, and the names of its inputs in order."""
    root: Any = marked.program.module(check_guards=False)
    graph = root.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    names = dict(zip(placeholders, marked.input_names, strict=True))
    units = _remove_markers(graph, skipped)
    if missing := skipped - units:
        msg = f"no boundary markers for {sorted(missing)}; the trace must mark every unit that is to be cut"
        raise ExportError(msg)
    for node in list(graph.nodes):
        if node.target is _ASSERTION:
            graph.erase_node(node)
        node.target = _ATTENTION.get(node.target, node.target)
    if any(str(node.target).startswith("blockexport.") for node in graph.nodes):
        msg = "mixtures of experts have no form for torch's compilers here; build this model for onnxruntime"
        raise ExportError(msg)
    output = graph.output_node()
    output.args = ((output.args[0][0],),)
    # Nothing that is left has effects: attention becomes one that has only when it is traced.
    graph.eliminate_dead_code(lambda node: node.op in {"placeholder", "output"})
    dropped = [node for node, name in names.items() if "." in name and not node.users]
    for node in dropped:
        graph.erase_node(node)
    graph.set_codegen(fx.graph.CodeGen())
    return fx.GraphModule(root, graph), tuple(name for node, name in names.items() if node not in dropped)


def _remove_markers(graph: fx.Graph, skipped: set[str]) -> set[str]:
    """Wire the exit of each skipped unit to its entry, and all others through; the units that there are."""
    entries: dict[str, Any] = {}
    for node in graph.find_nodes(op="call_function", target=_BOUNDARY):
        source, unit, side = node.args
        if side == "in":
            entries[unit] = source
        node.replace_all_uses_with(entries[unit] if unit in skipped else source)
        graph.erase_node(node)
    return set(entries)


def _fixed(axes: Mapping[int, str], sizes: Mapping[str, int]) -> dict[int, int]:
    return {axis: sizes[size] for axis, size in axes.items() if size in sizes}


def _resized(sample: torch.Tensor, fixed: Mapping[int, int]) -> torch.Tensor:
    return sample.new_zeros([fixed.get(axis, size) for axis, size in enumerate(sample.shape)]) if fixed else sample


def _signature(
    marked: MarkedProgram, names: tuple[str, ...], example: tuple[torch.Tensor, ...], sizes: Mapping[str, int]
) -> Signature:
    def spec(name: str, tensor: torch.Tensor, axes: Mapping[int, str]) -> TensorSpec:
        called = [axes[axis] if axis in axes else int(size) for axis, size in enumerate(tensor.shape)]
        shape = tuple(sizes.get(size, size) if isinstance(size, str) else size for size in called)
        return TensorSpec(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=shape)

    inputs = (spec(name, tensor, marked.dynamic_axes[name]) for name, tensor in zip(names, example, strict=True))
    first = marked.output_names[0]
    output = marked.program.graph.output_node().args[0][0].meta["val"]
    return Signature(inputs=tuple(inputs), outputs=(spec(first, output, marked.output_axes[first]),))
