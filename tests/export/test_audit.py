"""The audit must find what a bad cut would leave: each test plants one thing in a good file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from blockexport.core.masks import DepthMask
from blockexport.export.audit import audit

NUM_BLOCKS = 4
KEPT = (1, 3)
MASK = DepthMask.from_kept(KEPT, NUM_BLOCKS)
PATH = "model.layers"
SCOPES = "pkg.torch.onnx.name_scopes"


@pytest.fixture(scope="module")
def good(lowered: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lowered("llama").write(tmp_path_factory.mktemp("audit") / "good", *KEPT)


def planted(good: Path, folder: Path, plant: Callable[[Any], None]) -> list[str]:
    """Findings in a copy of the good graph after `plant` has changed it."""
    model = onnx.load(good, load_external_data=False)
    plant(model.graph)
    path = folder / "planted.onnx"
    path.write_bytes(model.SerializeToString())
    return audit(path, MASK, PATH)


def nodes(graph: Any, op_type: str) -> list[Any]:
    return [node for node in graph.node if node.op_type == op_type]


def test_a_good_file_passes(good: Path) -> None:
    assert audit(good, MASK, PATH) == []


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "wrapped.model.layers.2.norm.bias"])
def test_a_weight_of_a_skipped_block(name: str, good: Path, tmp_path: Path) -> None:
    (found,) = planted(good, tmp_path, lambda graph: graph.initializer.add(name=name))
    assert found == f"initializer {name} belongs to skipped block {name.split('layers.')[1][0]}"


def test_a_weight_of_block_10_is_not_one_of_block_1(good: Path, tmp_path: Path) -> None:
    assert planted(good, tmp_path, lambda graph: graph.initializer.add(name="model.layers.10.norm.weight")) == []


@pytest.mark.parametrize("place", ["input", "output"])
@pytest.mark.parametrize("part", ["key", "value"])
def test_a_cache_row_of_a_skipped_block(place: str, part: str, good: Path, tmp_path: Path) -> None:
    stem = "past_key_values" if place == "input" else "present"
    found = planted(good, tmp_path, lambda graph: getattr(graph, place).add(name=f"{stem}.2.{part}"))
    assert found == ["cache row of skipped block 2 is among inputs or outputs"]


@pytest.mark.parametrize("op_type", ["FusedMatMul", "GroupQueryAttention", "RMSNormalization"])
def test_a_node_that_computes_for_a_skipped_block(op_type: str, good: Path, tmp_path: Path) -> None:
    def plant(graph: Any) -> None:
        node = next(node for node in nodes(graph, op_type) if "layers.1" in str(node.metadata_props))
        for prop in node.metadata_props:
            if prop.key == SCOPES:
                prop.value = prop.value.replace("layers.1", "layers.0")

    (found,) = planted(good, tmp_path, plant)
    assert found.endswith(f"({op_type}) belongs to skipped block 0")


def test_one_attention_too_many(good: Path, tmp_path: Path) -> None:
    def plant(graph: Any) -> None:
        graph.node.append(nodes(graph, "GroupQueryAttention")[0])

    assert planted(good, tmp_path, plant) == ["3 attention nodes for 2 kept blocks"]


def test_one_attention_too_few(good: Path, tmp_path: Path) -> None:
    def plant(graph: Any) -> None:
        graph.node.remove(nodes(graph, "GroupQueryAttention")[0])

    assert "1 attention nodes for 2 kept blocks" in planted(good, tmp_path, plant)


def test_a_boundary_marker(good: Path, tmp_path: Path) -> None:
    def plant(graph: Any) -> None:
        graph.node.add(op_type="Boundary", domain="blockexport", name="mark")

    assert planted(good, tmp_path, plant) == ["node mark is a boundary marker"]


def test_a_kept_block_that_is_not_there(good: Path, tmp_path: Path) -> None:
    def plant(graph: Any) -> None:
        for tensor in [tensor for tensor in graph.initializer if tensor.name.startswith("model.layers.3.")]:
            graph.initializer.remove(tensor)

    assert "kept block 3 has no initializer" in planted(good, tmp_path, plant)


def test_a_kept_block_without_cache(good: Path, tmp_path: Path) -> None:
    def plant(graph: Any) -> None:
        for values in (graph.input, graph.output):
            for value in [value for value in values if ".3" in value.name]:
                values.remove(value)

    assert planted(good, tmp_path, plant) == ["kept block 3 has no cache row"]


@pytest.mark.parametrize("architecture", ["llama", pytest.param("vit", marks=pytest.mark.slow)])
def test_the_full_graph_is_no_level(architecture: str, lowered: Callable, tmp_path: Path) -> None:
    full = lowered(architecture)
    path = full.write(tmp_path / "full", *range(NUM_BLOCKS))
    found = " ".join(audit(path, MASK, full.model.spec.block_path))
    for block in MASK.skipped:
        assert f"belongs to skipped block {block}" in found
    assert "4 attention nodes for 2 kept blocks" in found
