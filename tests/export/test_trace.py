"""What a trace is: the whole model, every block between two markers, attention left open, nothing changed."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaModel

from blockexport.errors import ModelSupportError
from blockexport.export import ops
from blockexport.export.trace import MarkedProgram, block_unit, trace
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.testing.tiny_models import IMAGE_SHAPE, VOCAB_SIZE, tiny_inputs, tiny_model

NUM_BLOCKS = 3
ATTENTION = {"llama": "cached_attention", "bert": "full_attention", "vit": "full_attention"}


@pytest.fixture(scope="module", params=list(ATTENTION))
def traced(request: pytest.FixtureRequest) -> tuple[str, LoadedModel, MarkedProgram]:
    model = wrap_module(tiny_model(request.param, NUM_BLOCKS))
    return request.param, model, trace(model)


def calls(program: MarkedProgram, name: str) -> list[torch.fx.Node]:
    wanted = getattr(torch.ops.blockexport, name).default
    return [node for node in program.program.graph.nodes if node.op == "call_function" and node.target is wanted]


def test_every_block_lies_between_two_markers_in_order(traced: Any) -> None:
    _, _, program = traced
    found = [tuple(node.args[1:]) for node in calls(program, "boundary")]
    assert found == [(block_unit(block), side) for block in range(NUM_BLOCKS) for side in ("in", "out")]


def test_attention_is_one_open_call_for_each_block(traced: Any) -> None:
    architecture, _, program = traced
    assert len(calls(program, ATTENTION[architecture])) == NUM_BLOCKS
    others = {str(node.target) for node in program.program.graph.nodes if node.op == "call_function"}
    assert not [name for name in others if "scaled_dot_product" in name or "softmax" in name]


def test_weights_are_those_of_the_model_and_not_copies(traced: Any) -> None:
    _, model, program = traced
    ours = {tensor.data_ptr() for tensor in model.module.parameters()}
    theirs = {tensor.data_ptr() for tensor in program.program.parameters()}
    assert theirs
    assert theirs <= ours


def test_the_model_is_left_as_it_was() -> None:
    model = wrap_module(tiny_model("gemma2", 2))
    inputs = tiny_inputs(model.module)
    with torch.no_grad():
        before = model(**inputs).logits
    attention, digest = model.module.config._attn_implementation, model.spec.digest
    trace(model)
    assert model.module.config._attn_implementation == attention
    assert not model.module._forward_pre_hooks
    assert not [part for part in model.module.modules() if part._forward_hooks or part._forward_pre_hooks]
    assert wrap_module(model.module).spec.digest == digest
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before)


def sample(name: str, batch: int, seq: int, capacity: int, model: LoadedModel) -> torch.Tensor:
    """A value for one input of a decoder's program, for a first prompt of full length."""
    rng = np.random.default_rng(0)
    if name == "input_ids":
        return torch.from_numpy(rng.integers(1, VOCAB_SIZE, (batch, seq)))
    if name in ("position_ids", "logits_index"):
        return torch.arange(seq).repeat(batch, 1)
    if name == "total_tokens":
        return torch.tensor(seq, dtype=torch.int32)
    if name.startswith("last_"):
        return torch.full((batch,), seq - 1, dtype=torch.int32)
    _, block, _ = name.split(".")
    row = model.spec.kv[int(block)]
    return torch.zeros(batch, row.num_heads, capacity, row.head_dim)


def test_a_program_computes_what_the_model_does_at_any_size(traced: Any) -> None:
    architecture, model, program = traced
    run = program.program.module()
    for batch, seq, capacity in [(3, 5, 9), (1, 1, 4), (2, 7, 7)]:
        if architecture == "vit":
            arguments = {"pixel_values": torch.randn(batch, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(0))}
        elif architecture == "bert":
            arguments = tiny_inputs(model.module, batch, seq)
        else:
            arguments = {name: sample(name, batch, seq, capacity, model) for name in program.input_names}
        with torch.no_grad():
            output = run(*(arguments[name] for name in program.input_names))
            inputs = {name: arguments[name] for name in arguments if name in ("input_ids", "attention_mask")}
            wanted = getattr(model(**(inputs or arguments)), model.spec.output)
        found = output[0] if isinstance(output, tuple | list) else output
        real = inputs.get("attention_mask", torch.ones(wanted.shape[:2]))[..., None] if inputs else 1
        torch.testing.assert_close(found * real, wanted * real, atol=1e-5, rtol=0)


def test_decoders_have_a_cache_row_for_each_block_and_others_none(traced: Any) -> None:
    architecture, _, program = traced
    rows = [name for name in program.input_names if name.startswith("past_key_values.")]
    expected = [f"past_key_values.{block}.{part}" for block in range(NUM_BLOCKS) for part in ("key", "value")]
    assert rows == (expected if architecture == "llama" else [])
    presents = [name.replace("past_key_values", "present") for name in rows]
    assert list(program.output_names[1:]) == presents


def test_a_causal_trunk_without_a_head_is_refused() -> None:
    trunk = LlamaModel(tiny_model("llama", 2).config)
    with pytest.raises(ModelSupportError, match="ForCausalLM"):
        trace(wrap_module(trunk))


@pytest.mark.parametrize("window", [ops.NO_WINDOW, 2])
@pytest.mark.parametrize("softcap", [ops.NO_SOFTCAP, 0.5])
@pytest.mark.parametrize("mutual", [(), (0, 2), (4, 5)])
def test_cached_attention_in_steps_is_attention_in_one_go(window: int, softcap: float, mutual: tuple[int, ...]) -> None:
    """The operator's eager form defines what engines must do, so it is held to the definition of attention."""
    source = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 6, 4, generator=source) for heads in (4, 2, 2))
    keys, values = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    scores = query @ keys.mT * 0.3
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    distance = torch.arange(6)[:, None] - torch.arange(6)
    visible = (distance >= 0) & (distance < (window if window > 0 else 6))
    is_mutual = torch.isin(torch.arange(6), torch.tensor(mutual))
    visible |= is_mutual[:, None] & is_mutual
    wanted = (scores.masked_fill(~visible, -torch.inf).softmax(-1) @ values).transpose(1, 2).flatten(2)
    past = torch.full((2, 2, 9, 4), 1e3), torch.full((2, 2, 9, 4), 1e3)
    found = []
    for step in (slice(0, 3), slice(3, 4), slice(4, 6)):
        last = torch.full((2,), step.stop - 1, dtype=torch.int32)
        part = (tensor[:, :, step] for tensor in (query, key, value))
        out, *past = ops.cached_attention(
            *part,
            *past,
            last,
            torch.tensor(step.stop, dtype=torch.int32),
            0.3,
            window,
            softcap,
            is_mutual[step].repeat(2, 1) if mutual else None,
        )
        found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), wanted, atol=1e-5, rtol=0)
    assert bool((past[0][:, :, 6:] == 1e3).all())
