"""Mixtures of experts: one operator each, the same answers, one copy of the weights."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from blockexport.backends.onnxruntime.operators import STOCK, choose_operators
from blockexport.bundle.layout import WEIGHTS_FILE
from blockexport.bundle.weights import write_weights
from blockexport.errors import BackendUnavailableError
from blockexport.export import ops
from blockexport.export.cut import cut
from blockexport.export.experts import interleaved
from blockexport.export.graph_file import save, shared_tensors
from blockexport.export.lower import native, ort
from blockexport.export.trace import trace
from blockexport.models.loaded import wrap_module
from blockexport.runtime.engines import Engines, LevelFile
from blockexport.testing.tiny_models import tiny_inputs, tiny_model

NUM_BLOCKS = 2
# More experts than the tiny models have, and of each token more than it takes to tell an order from another.
MANY = {"num_experts": 12, "num_experts_per_tok": 5}
# Sums in another order; a wrong expert or weight shows as 1e-3.
TOLERANCE = 1e-5


def types_of(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("num_tokens", [1, 30])
def test_the_operator_is_what_transformers_computes(num_tokens: int) -> None:
    module: Any = tiny_model("olmoe", 1, **MANY).double()
    module.set_experts_implementation("eager")
    mixture = module.model.layers[0].mlp
    hidden = torch.randn(num_tokens, module.config.hidden_size, dtype=torch.double)
    with torch.no_grad():
        _, weights, experts = mixture.gate(hidden)
        wanted = mixture.experts(hidden, experts, weights)
        given = mixture.experts.gate_up_proj, mixture.experts.down_proj
        found = ops.gated_experts(hidden, experts, weights.double(), *given)
    assert wanted.abs().max() > 1e-2
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_rows_are_stored_in_turn() -> None:
    array = np.arange(2 * 6 * 3, dtype=np.float32).reshape(2, 6, 3)
    tensor = interleaved(ir.tensor(array, name="model.layers.0.gate_up_proj"))
    assert tensor.name == "model.layers.0.gate_up_proj.interleaved"
    np.testing.assert_array_equal(tensor.numpy()[:, 0::2], array[:, :3])
    np.testing.assert_array_equal(tensor.numpy()[:, 1::2], array[:, 3:])


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "normalised"), [("olmoe", False), ("olmoe", True), ("mixtral", True)])
def test_engines_answer_as_the_model_does(architecture: str, normalised: bool, tmp_path: Path) -> None:
    more = {"num_local_experts": 12, "num_experts_per_tok": 5} if architecture == "mixtral" else MANY
    model = wrap_module(tiny_model(architecture, NUM_BLOCKS, **more, norm_topk_prob=normalised))
    stock = ort.lower(trace(model))
    check_operators(
        model, {"ort": stock, "native": native.use_native_operators(stock)}, ("MoE", "GatedExperts"), tmp_path
    )


@pytest.mark.slow
def test_experts_with_another_gate_are_gathered(tmp_path: Path) -> None:
    model = wrap_module(tiny_model("olmoe", NUM_BLOCKS, hidden_act="gelu"))
    stock = ort.lower(trace(model))
    assert "MoE" not in types_of(stock)
    assert {name for name in stock.graph.initializers if "gate_up" in name} == {
        f"model.layers.{block}.mlp.experts.gate_up_proj" for block in range(NUM_BLOCKS)
    }
    check_answers(model, {"ort": stock, "native": native.use_native_operators(stock)}, tmp_path)


def check_operators(model: Any, graphs: dict[str, ir.Model], names: tuple[str, str], folder: Path) -> None:
    for graph, name in zip(graphs.values(), names, strict=True):
        assert types_of(graph).count(name) == NUM_BLOCKS
    assert not set(types_of(graphs["native"])) & {"MoE", "Log", "ScatterElements"}
    ours, theirs = (shared_tensors(cut(graphs[target], [])) for target in ("native", "ort"))
    experts = {name: tensor for name, tensor in theirs.items() if ".experts." in name}
    assert len(experts) == 2 * NUM_BLOCKS
    for name, tensor in experts.items():
        np.testing.assert_array_equal(ours[name], tensor)
    check_answers(model, graphs, folder)


def check_answers(model: Any, graphs: dict[str, ir.Model], folder: Path) -> None:
    levels = {target: cut(graph, []) for target, graph in graphs.items()}
    tensors = {name: tensor for level in levels.values() for name, tensor in shared_tensors(level).items()}
    locations = write_weights(folder / WEIGHTS_FILE, tensors)
    inputs = tiny_inputs(model.module, batch_size=2, num_tokens=9)
    with torch.no_grad():
        wanted = model(**inputs).logits.numpy()
    real = inputs["attention_mask"].numpy().astype(bool)
    for operators in operators_here():
        path = folder / f"{operators.target}.onnx"
        save(levels[operators.target], path, locations)
        file = LevelFile(path, tuple(range(NUM_BLOCKS)), operators.library)
        engine = Engines(model.spec, {"level": file}, threads=2).whole_pass("level")
        found = engine({name: tensor.numpy() for name, tensor in inputs.items()})
        assert np.abs(found - wanted)[real].max() < TOLERANCE


def operators_here() -> list[Any]:
    try:
        return [STOCK, choose_operators("native")]
    except BackendUnavailableError:
        return [STOCK]


@pytest.mark.slow
def test_the_model_keeps_its_own_way_of_computing_experts() -> None:
    model = wrap_module(tiny_model("mixtral", NUM_BLOCKS))
    before = model.module.config._experts_implementation
    trace(model)
    assert model.module.config._experts_implementation == before
