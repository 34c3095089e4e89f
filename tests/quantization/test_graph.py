"""Graphs with smaller weights against the eager model with what these stand for."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from blockexport.bundle.layout import WEIGHTS_FILE
from blockexport.bundle.weights import write_weights
from blockexport.core.masks import DepthMask
from blockexport.core.precision import Precision
from blockexport.export.audit import audit
from blockexport.export.cut import cut
from blockexport.export.graph_file import save, shared_tensors
from blockexport.export.lower.ort import lower
from blockexport.export.trace import block_unit, trace
from blockexport.masking.masked import masked
from blockexport.masking.oracle import Oracle
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.quantization.graph import QuantisedGraph, quantise_graph
from blockexport.quantization.reference import dequantised, rounded_activations
from blockexport.runtime.engines import Engines, LevelFile
from blockexport.runtime.proof import check_level
from blockexport.testing.tiny_models import tiny_inputs, tiny_model

NUM_BLOCKS = 3
PRECISIONS = ["int8g32", "int4g16", "int4g32a"]

pytestmark = pytest.mark.slow


@cache
def _marked(architecture: str) -> tuple[LoadedModel, ir.Model]:
    model = wrap_module(tiny_model(architecture, NUM_BLOCKS))
    return model, lower(trace(model))


@cache
def _quantised(architecture: str, precision: str) -> QuantisedGraph:
    return quantise_graph(_marked(architecture)[1], Precision.parse(precision))


def _write(graph: ir.Model, mask: DepthMask, folder: Path) -> Path:
    level = cut(graph, [block_unit(block) for block in mask.skipped])
    path = folder / "level.ort.onnx"
    save(level, path, write_weights(folder / WEIGHTS_FILE, shared_tensors(level)))
    return path


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "gemma2", "olmoe", "mixtral", "bert", "vit"])
def test_an_engine_is_as_far_off_as_rounding_its_activations_explains(
    architecture: str, precision: str, tmp_path: Path
) -> None:
    model, _ = _marked(architecture)
    found = _quantised(architecture, precision)
    mask = DepthMask.from_kept([0, 2], NUM_BLOCKS)
    path = _write(found.model, mask, tmp_path)
    assert audit(path, mask, model.spec.block_path) == []
    inputs = tiny_inputs(model.module, batch_size=2, num_tokens=9)
    reference = dequantised(model, found)
    with torch.no_grad(), masked(reference, mask):
        exact = getattr(reference(**inputs), model.spec.output).numpy()
        with rounded_activations(reference, found):
            rounded = getattr(reference(**inputs), model.spec.output).numpy()
    engine = Engines(model.spec, {"level": LevelFile(path, mask.kept)}, threads=1)
    ours = engine.whole_pass("level")({name: tensor.numpy() for name, tensor in inputs.items()})
    if exact.ndim == 3:
        real = inputs["attention_mask"].numpy()[:, :, None].astype(bool)
        exact, rounded, ours = (np.where(real, array, 0) for array in (exact, rounded, ours))
    allowed = np.abs(rounded - exact).max()
    assert allowed > 0
    # Both are draws of one rounding error; the largest of as many differs little.
    assert np.abs(ours - exact).max() <= 2 * allowed
    with torch.no_grad(), masked(model, mask):
        unquantised = getattr(model(**inputs), model.spec.output).numpy()
    if precision.startswith("int4"):
        assert np.abs(exact - unquantised).max() > 2 * allowed, "the test could not tell wrong weights from right ones"


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "gemma2", "bert", "vit"])
def test_bf16_is_as_exact_as_fp32(architecture: str, tmp_path: Path) -> None:
    model, _ = _marked(architecture)
    found = _quantised(architecture, "bf16")
    mask = DepthMask.from_kept([0, 2], NUM_BLOCKS)
    path = _write(found.model, mask, tmp_path)
    assert audit(path, mask, model.spec.block_path) == []
    cases = Oracle(dequantised(model, found), seed=0).record(mask)
    engines = Engines(model.spec, {"level": LevelFile(path, mask.kept)}, threads=1)
    records = check_level(engines, "level", cases)
    assert records
    assert all(record.passed for record in records)
    original = Oracle(model, seed=0).record(mask)
    apart = [np.abs(ours.expected - theirs.expected).max() for ours, theirs in zip(cases, original, strict=True)]
    allowed = [case.tolerance for case in cases]
    assert max(apart) > max(allowed), "the test could not tell rounded weights from others"


def test_a_tied_head_in_bf16_is_the_embedding() -> None:
    graph = quantise_graph(_tied_marked(), Precision.parse("bf16")).model
    weight = graph.graph.initializers["lm_head.weight.bf16"]
    assert sorted(node.op_type for node, _ in weight.uses()) == ["Cast", "Gather"]
    assert not [name for name in graph.graph.initializers if "embed_tokens" in name]


def test_a_tied_head_shares_its_bytes_with_the_embedding(tmp_path: Path) -> None:
    graph = quantise_graph(_tied_marked(), Precision.parse("int4g16")).model
    tensors = shared_tensors(cut(graph, []))
    rows, packed = (tensors[f"lm_head.weight.int4g16.{part}"] for part in ("rows", "packed"))
    locations = write_weights(tmp_path / WEIGHTS_FILE, {"rows": rows, "packed": packed})
    assert locations["rows"] == locations["packed"]
    assert {node.op_type for node in graph.graph} & {"MatMul", "FusedMatMul", "Gather"} == set()


@cache
def _tied_marked() -> ir.Model:
    module = tiny_model("qwen2", NUM_BLOCKS)
    module.set_output_embeddings(module.get_output_embeddings())
    module.config.tie_word_embeddings = True
    module.lm_head.weight = module.model.embed_tokens.weight
    return lower(trace(wrap_module(module)))


def test_the_marked_graph_stays_as_it_is() -> None:
    _, marked = _marked("qwen2")
    before = [(node.op_type, node.name) for node in marked.graph], set(marked.graph.initializers)
    quantise_graph(marked, Precision.parse("int4"))
    assert ([(node.op_type, node.name) for node in marked.graph], set(marked.graph.initializers)) == before


@pytest.mark.parametrize("precision", ["int4g16", "bf16"])
@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "bert", "vit"])
def test_every_linear_layer_is_quantised(architecture: str, precision: str) -> None:
    model, _ = _marked(architecture)
    names = {
        f"{name}.weight"
        for name, module in model.module.named_modules()
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
    }
    # Poolers are no part of what an engine returns.
    names = {name for name in names if "pooler" not in name}
    assert names <= set(_quantised(architecture, precision).matrices)


@pytest.mark.parametrize("precision", ["int4g16", "bf16"])
def test_the_original_model_keeps_its_weights(precision: str) -> None:
    model, _ = _marked("qwen2")
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    reference = dequantised(model, _quantised("qwen2", precision))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())
    changed = {name for name, tensor in reference.module.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == set(_quantised("qwen2", precision).matrices)
