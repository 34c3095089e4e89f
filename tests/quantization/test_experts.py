"""Quantised mixtures of experts: which weights are, in what order, and the usual gates over a bundle of them."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

import blockexport as bx
from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.core.precision import Precision
from blockexport.export.lower.ort import lower
from blockexport.export.trace import trace
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.pipeline.build import BuildOptions
from blockexport.quantization.blockwise import quantise
from blockexport.quantization.graph import QuantisedGraph, quantise_graph
from blockexport.quantization.reference import dequantised, rounded_activations
from blockexport.runtime.verify import verify_bundle
from blockexport.testing.tiny_models import tiny_model

NUM_BLOCKS = 3
ASYMMETRIC = Precision.parse("int4g16a")

pytestmark = pytest.mark.slow


@cache
def _quantised() -> tuple[LoadedModel, QuantisedGraph]:
    model = wrap_module(tiny_model("olmoe", NUM_BLOCKS))
    return model, quantise_graph(lower(trace(model)), ASYMMETRIC)


def test_all_weights_of_experts_are_quantised_and_routers_are_not() -> None:
    model, graph = _quantised()
    parameters = {name for name, _ in model.module.named_parameters()}
    experts = {name for name in parameters if ".experts." in name}
    routers = {name for name in parameters if name.endswith("mlp.gate.weight")}
    assert len(experts) == 2 * NUM_BLOCKS
    assert len(routers) == NUM_BLOCKS
    assert experts <= set(graph.matrices)
    assert not routers & set(graph.matrices)
    assert routers <= set(graph.model.graph.initializers)
    assert not experts & set(graph.model.graph.initializers)
    assert [node.op_type for node in graph.model.graph].count("QMoE") == NUM_BLOCKS


def test_the_reference_has_the_rows_where_the_checkpoint_has_them() -> None:
    model, graph = _quantised()
    name = "model.layers.1.mlp.experts.gate_up_proj"
    original = model.module.get_parameter(name).detach().numpy()
    wanted = quantise(original.reshape(-1, original.shape[-1]), ASYMMETRIC).dequantise().reshape(original.shape)
    np.testing.assert_array_equal(dequantised(model, graph).module.get_parameter(name).detach().numpy(), wanted)
    packed = graph.model.graph.initializers[f"{name}.interleaved.{ASYMMETRIC}.packed"].const_value
    assert packed is not None
    in_halves = quantise(original.reshape(-1, original.shape[-1]), ASYMMETRIC).packed.reshape(len(original), 2, -1)
    in_turn = packed.numpy().reshape(len(original), original.shape[1] // 2, 2, -1).swapaxes(1, 2)
    np.testing.assert_array_equal(in_turn.reshape(in_halves.shape), in_halves)


def test_in_bf16_experts_and_routers_stay_and_all_other_matrices_are_rounded() -> None:
    model = wrap_module(tiny_model("olmoe", NUM_BLOCKS))
    graph = quantise_graph(lower(trace(model)), Precision.parse("bf16"))
    left = {name for name, weight in model.module.named_parameters() if weight.ndim > 1} - set(graph.matrices)
    assert len(left) == 3 * NUM_BLOCKS
    assert all(".experts." in name or name.endswith("mlp.gate.weight") for name in left)
    assert [node.op_type for node in graph.model.graph].count("MoE") == NUM_BLOCKS


def test_rounding_activations_leaves_no_trace() -> None:
    model, graph = _quantised()
    experts = model.module.get_submodule("model.layers.0.mlp.experts")
    before = model.module.config._experts_implementation
    with rounded_activations(model, graph):
        assert "_apply_gate" in vars(experts)
    assert "_apply_gate" not in vars(experts)
    assert model.module.config._experts_implementation == before


def test_a_bundle_passes_its_gates(tmp_path: Path) -> None:
    model = wrap_module(tiny_model("olmoe", NUM_BLOCKS, num_experts=12, num_experts_per_tok=4))
    ladder = DepthLadder.from_masks([DepthMask.from_kept(range(depth), NUM_BLOCKS) for depth in (3, 1)])
    options = BuildOptions(precision=Precision.parse("int4g16"))
    bundle = bx.build(model, ladder, out=tmp_path / "bundle", options=options)
    checks = verify_bundle(bundle.folder)
    assert {check.status for check in checks if check.id != "parity:native"} == {"ok"}
    weights = sum(parameter.nbytes for parameter in model.module.parameters())
    assert (bundle.folder / "weights.safetensors").stat().st_size < weights / 2
