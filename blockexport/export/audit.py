"""The audit: proof from the finished file alone that a skipped block left nothing behind.

It reads the graph as a runtime would and knows nothing of how it was cut.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from blockexport.core.masks import DepthMask

_CACHE_NAME = re.compile(r"^(?:past_key_values|present|last_slot)\.(\d+)(?:\.(?:key|value))?$")
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_ATTENTION_OPS = frozenset({"GroupQueryAttention", "MultiHeadAttention", "Attention", "CachedAttention"})


def audit(path: Path, mask: DepthMask, block_path: str) -> list[str]:
    """Look for anything of a skipped block in an ONNX file.

    Args:
        path: the level's graph.
        mask: the level's mask.
        block_path: dotted name of the model's block list, e.g. `model.layers`.

    Returns:
        What is wrong, empty when nothing is.
    """
    graph = onnx.load(path, load_external_data=False).graph
    weights = [tensor.name for tensor in graph.initializer]
    cache = [value.name for value in (*graph.input, *graph.output)]
    return [*audit_names(weights, cache, mask, block_path), *_nodes(graph, mask, block_path)]


def audit_names(weights: Iterable[str], values: Iterable[str], mask: DepthMask, block_path: str) -> list[str]:
    """Look for anything of a skipped block among what an engine reads and gives; all that machine code lets one see.

    Args:
        weights: names of its weights.
        values: names of its inputs and outputs.
        mask: the level's mask.
        block_path: dotted name of the model's block list.
    """
    return [*_weights(weights, mask, block_path), *_cache(values, mask)]


def _block_of(name: str, block_path: str) -> int | None:
    match = re.match(rf"^(?:.*\.)?{re.escape(block_path)}\.(\d+)(?:\.|$)", name)
    return int(match[1]) if match else None


def _weights(names: Iterable[str], mask: DepthMask, block_path: str) -> Iterator[str]:
    found = set()
    for name in names:
        block = _block_of(name, block_path)
        if block is not None:
            found.add(block)
            if block in mask.skipped:
                yield f"initializer {name} belongs to skipped block {block}"
    for block in sorted(set(mask.kept) - found):
        yield f"kept block {block} has no initializer"


def _cache(names: Iterable[str], mask: DepthMask) -> Iterator[str]:
    blocks = {int(match[1]) for name in names if (match := _CACHE_NAME.match(name))}
    for block in sorted(blocks & set(mask.skipped)):
        yield f"cache row of skipped block {block} is among inputs or outputs"
    if blocks:
        for block in sorted(set(mask.kept) - blocks):
            yield f"kept block {block} has no cache row"


def _nodes(graph: onnx.GraphProto, mask: DepthMask, block_path: str) -> Iterator[str]:
    attentions = 0
    for node in graph.node:
        if node.domain == "blockexport":
            yield f"node {node.name} is a boundary marker"
        notes = next((prop.value for prop in node.metadata_props if prop.key == _SCOPES_KEY), "")
        scopes = re.findall(r"'([^']*)'", notes)
        attentions += node.op_type in _ATTENTION_OPS and not _is_beside_blocks(scopes, block_path)
        for scope in scopes:
            block = _block_of(scope, block_path)
            # Arithmetic on shapes is traced once, wherever it is first needed, and serves all blocks.
            if block in mask.skipped and node.op_type in _COMPUTE_OPS:
                yield f"node {node.name} ({node.op_type}) belongs to skipped block {block}"
                break
    if attentions != mask.depth:
        yield f"{attentions} attention nodes for {mask.depth} kept blocks"


def _is_beside_blocks(scopes: list[str], block_path: str) -> bool:
    """Whether a node is known to be of a module outside the blocks, as attention that pools what they give."""
    modules = [scope for scope in scopes if scope]
    return len(modules) > 1 and all(_block_of(scope, block_path) is None for scope in modules)


_COMPUTE_OPS = _ATTENTION_OPS | {
    *("MatMul", "FusedMatMul", "Gemm", "Conv", "RMSNormalization", "LayerNormalization"),
    *("MatMulNBits", "MoE", "QMoE", "GatedExperts", "GatedExpertsNBits"),
}
