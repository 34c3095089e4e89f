"""A depth out of a marked graph: rewire the boundary markers, then drop what nothing needs any more."""

from collections.abc import Iterable

import onnx_ir as ir
from onnx_ir.passes import common

from blockexport.core.signature import LAST_SLOT
from blockexport.errors import ExportError
from blockexport.export.lower.ort import BOUNDARY_DOMAIN, BOUNDARY_OP


def cut(marked: ir.Model, skipped_units: Iterable[str]) -> ir.Model:
    """Derive one depth from a marked model, which stays as it is.

    For a skipped unit, whatever read its exit reads its entry instead. Everything between, and every cache input and
    output that lies there, then has no reader and goes. Weights are shared with `marked`, not copied.

    Args:
        marked: full-depth model with boundary markers.
        skipped_units: names of the units to cut out.

    Returns:
        A model without markers.

    Raises:
        ExportError: a unit has no markers, or something outside it depends on its cache row.
    """
    model = marked.clone()
    graph = model.graph
    markers = _markers(graph)
    skipped = set(skipped_units)
    if missing := skipped - {unit for unit, _ in markers}:
        msg = f"no boundary markers for {sorted(missing)}; the trace must mark every unit that is to be cut"
        raise ExportError(msg)
    for unit in skipped:
        _drop_outputs(graph, markers[unit, "in"], markers[unit, "out"])
    for (unit, side), marker in markers.items():
        source = markers[unit, "in"] if unit in skipped and side == "out" else marker
        entry, exit_value = source.inputs[0], marker.outputs[0]
        assert entry is not None
        exit_value.replace_all_uses_with(entry, replace_graph_outputs=True)
    graph.remove(list(markers.values()), safe=True)
    common.RemoveUnusedNodesPass()(model)
    _drop_unused_inputs(graph)
    common.RemoveUnusedOpsetsPass()(model)
    return model


def _markers(graph: ir.Graph) -> dict[tuple[str, str], ir.Node]:
    """Markers by unit and side, in graph order, so that an entry is resolved before the exits behind it."""
    return {
        (node.attributes["unit"].as_string(), node.attributes["side"].as_string()): node
        for node in graph
        if node.domain == BOUNDARY_DOMAIN and node.op_type == BOUNDARY_OP
    }


def region(entry: ir.Node, leave: ir.Node) -> set[ir.Node]:
    """Nodes on a path from a unit's entry marker to its exit marker, markers excluded."""
    downstream: set[ir.Node] = set()
    stack = [usage.node for usage in entry.outputs[0].uses()]
    while stack:
        node = stack.pop()
        if node in downstream or node is leave:
            continue
        downstream.add(node)
        stack += [usage.node for output in node.outputs for usage in output.uses()]
    inside: set[ir.Node] = set()
    upstream = [leave.inputs[0].producer()] if leave.inputs[0] is not None else []
    while upstream:
        candidate = upstream.pop()
        if candidate is None or candidate in inside or candidate not in downstream:
            continue
        inside.add(candidate)
        upstream += [value.producer() for value in candidate.inputs if value is not None]
    return inside


def _drop_outputs(graph: ir.Graph, entry: ir.Node, leave: ir.Node) -> None:
    inside = region(entry, leave)
    graph.outputs[:] = [value for value in graph.outputs if value.producer() not in inside]


def _drop_unused_inputs(graph: ir.Graph) -> None:
    """Inputs of skipped units go; the arguments that every level takes stay, used or not."""
    kept = {str(value.name).partition(".")[2] for value in graph.outputs}
    for value in list(graph.inputs):
        argument, _, row = str(value.name).partition(".")
        if not row:
            continue
        # The slot of a block goes with its keys.
        has_output = (f"{row}.key" if argument == LAST_SLOT else row) in kept
        if has_output != bool(value.uses()):
            state = "is read" if value.uses() else "is not read"
            fate = "kept" if has_output else "cut"
            msg = f"{value.name} {state} although its output is {fate}; the trace ties units together"
            raise ExportError(msg)
        if not has_output:
            graph.inputs.remove(value)
