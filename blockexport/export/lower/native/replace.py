"""Putting one operator of ours where several nodes were."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

DOMAIN = "blockexport.cpu"


def replace(
    ends: Sequence[ir.Value],
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int | float],
    *,
    at: ir.Node,
    names_from: ir.Node,
) -> ir.Node:
    """Put one node before `at`, with an output for each of `ends`; what led to these goes unread.

    Args:
        ends: values that the outputs stand for from now on, under their names.
        op_type: an operator of our domain.
        inputs: its inputs, known at `at`.
        attributes: its attributes.
        at: where it is put.
        names_from: the node whose name and metadata it takes on.
    """
    new = ir.node(
        op_type, inputs, dict(attributes), domain=DOMAIN, version=1, num_outputs=len(ends), name=names_from.name
    )
    new.metadata_props.update(names_from.metadata_props)
    graph = at.graph
    assert graph is not None
    graph.insert_before(at, new)
    for old, output in zip(ends, new.outputs, strict=True):
        output.name, output.shape, output.type = old.name, old.shape, old.type
        old.name = f"{old.name}.stock"
        old.replace_all_uses_with(output, replace_graph_outputs=True)
    return new


def only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """The one node that reads a value, if it is of this type and the value goes nowhere else."""
    readers = [node for node, _ in value.uses()]
    is_only = len(readers) == 1 and readers[0].op_type == op_type and not value.is_graph_output()
    return readers[0] if is_only else None


def number(node: ir.Node, name: str, default: float) -> float:
    """A numeric attribute, or what it is when it is left out."""
    return float(node.attributes[name].value) if name in node.attributes else default
