"""The lowering for torch's compilers, run eagerly: what is compiled is right before any compiler has touched it."""

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch

from blockexport.backends.aotinductor.decoder import AotDecoder
from blockexport.backends.aotinductor.single_pass import AotSinglePass
from blockexport.core.masks import DepthMask
from blockexport.errors import ExportError
from blockexport.export.lower.aten import AtenProgram, lower
from blockexport.export.parity import check_decoder, check_single_pass
from blockexport.export.trace import MarkedProgram, block_unit, trace
from blockexport.masking.oracle import Oracle
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.testing.tiny_models import tiny_model

MASK = DepthMask((0, 2), 3)
UNITS = [block_unit(1)]


@cache
def traced(architecture: str) -> tuple[LoadedModel, MarkedProgram]:
    model = wrap_module(tiny_model(architecture, MASK.num_blocks))
    return model, trace(model)


def eagerly(program: AtenProgram) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
    module = program.program.module(check_guards=False)

    def run(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return module(*inputs)[0]

    return run


# Biases and a tied head; windows, softcaps and norms around each branch.
@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])
def test_a_cut_decoder_passes_the_parity_gate(architecture: str) -> None:
    model, marked = traced(architecture)
    program = lower(marked, UNITS)
    runner = AotDecoder(eagerly(program), program.signature)
    assert runner.blocks == MASK.kept
    layout = {block: (model.spec.kv[block].num_heads, model.spec.kv[block].head_dim) for block in MASK.kept}
    records = check_decoder(runner, layout, Oracle(model, seed=1).record(MASK))
    assert [record.check for record in records] == ["prefill", "decode", "padded", "chunked"]
    assert all(record.passed for record in records), records


@pytest.mark.parametrize("architecture", ["vit"])
def test_a_cut_single_pass_model_passes_the_parity_gate(architecture: str) -> None:
    model, marked = traced(architecture)
    program = lower(marked, UNITS)
    (record,) = check_single_pass(
        AotSinglePass(eagerly(program), program.signature), Oracle(model, seed=1).record(MASK)
    )
    assert record.passed, record


def test_a_wrong_level_fails_the_gate() -> None:
    model, marked = traced("qwen2")
    program = lower(marked, [block_unit(2)])
    layout = {block: (model.spec.kv[block].num_heads, model.spec.kv[block].head_dim) for block in (0, 1)}
    records = check_decoder(AotDecoder(eagerly(program), program.signature), layout, Oracle(model, 1).record(MASK))
    assert not any(record.passed for record in records)


def test_weights_have_the_names_of_the_weight_file_and_are_those_of_the_model() -> None:
    model, marked = traced("qwen2")
    weights = lower(marked, UNITS).weights
    parameters = dict(model.module.named_parameters(remove_duplicate=False))
    shared = {name: tensor for name, tensor in weights.items() if name in parameters}
    assert len(shared) > 20
    assert all(tensor.data_ptr() == parameters[name].data_ptr() for name, tensor in shared.items())
    assert not any(name.startswith("model.layers.1.") for name in weights)


def test_sizes_can_be_fixed() -> None:
    _, marked = traced("qwen2")
    signature = lower(marked, UNITS, sizes={"batch": 1, "seq": 1, "kept_positions": 1}).signature
    shapes = {value.name: value.shape for value in signature.inputs}
    assert shapes["input_ids"] == (1, 1)
    assert shapes["past_key_values.2.key"] == (1, 2, "capacity", 8)
    assert signature.outputs[0].shape == (1, 1, 97)


def test_a_unit_without_markers_is_refused() -> None:
    _, marked = traced("qwen2")
    with pytest.raises(ExportError, match=r"block\.7"):
        lower(marked, [block_unit(7)])


def test_a_mixture_of_experts_is_refused() -> None:
    _, marked = traced("mixtral")
    with pytest.raises(ExportError, match="onnxruntime"):
        lower(marked, UNITS)


def test_a_model_that_lies_elsewhere_is_lowered_there() -> None:
    """On the device of no values, so that every host can see it: nothing of a program may stay on the processor."""
    model = wrap_module(tiny_model("qwen2", MASK.num_blocks))
    model.module.to("meta")
    program = lower(trace(model), UNITS)
    tensors = [node.meta["val"] for node in program.program.graph.nodes if "val" in node.meta]
    devices = {tensor.device.type for tensor in tensors if isinstance(tensor, torch.Tensor)}
    assert devices == {"meta"}
    assert "device(type='cpu')" not in str(program.program.graph)
