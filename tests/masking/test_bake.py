"""The static module: equal to the masked one, without a trace of the skipped blocks, and fit for torch's compilers."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import StaticCache

from blockexport.core.masks import DepthMask
from blockexport.errors import MaskError
from blockexport.masking.bake import bake, export_program
from blockexport.masking.masked import masked
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.testing.tiny_models import ARCHITECTURES, DECODERS, tiny_inputs, tiny_model

NUM_BLOCKS = 5
MASKS = [DepthMask.from_kept(kept, NUM_BLOCKS) for kept in [(1, 3, 4), (0, 2), (2,)]]
GENERATION = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@cache
def model_of(architecture: str) -> LoadedModel:
    return wrap_module(tiny_model(architecture, NUM_BLOCKS))


def forward(module: nn.Module | LoadedModel, inputs: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    with torch.no_grad():
        return getattr(module(**inputs), name)


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_masked_model(architecture: str, mask: DepthMask) -> None:
    model = model_of(architecture)
    baked = bake(model, mask)
    inputs = tiny_inputs(model.module, batch_size=3)
    left_padded = {name: tensor.flip(1) for name, tensor in inputs.items()}
    with masked(model, mask):
        expected = forward(model, inputs, model.spec.output)
        continued = model.module.generate(**left_padded, **GENERATION) if architecture in DECODERS else None
    assert torch.equal(forward(baked, inputs, model.spec.output), expected)
    if continued is not None:
        assert torch.equal(baked.generate(**left_padded, **GENERATION), continued)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_keeps_weights_in_place_and_nothing_of_skipped_blocks(architecture: str) -> None:
    model, mask = model_of(architecture), MASKS[0]
    before = repr(model.module.config), len(model.module._forward_pre_hooks)
    baked = bake(model, mask)
    assert type(baked) is type(model.module)
    originals = dict(model.module.named_parameters()) | dict(model.module.named_buffers())
    kept = dict(baked.named_parameters()) | dict(baked.named_buffers())
    gone = tuple(f"{model.spec.block_path}.{block}." for block in mask.skipped)
    assert set(kept) == {name for name in originals if not name.startswith(gone)}
    assert len(kept) < len(originals)
    assert all(tensor.data_ptr() == originals[name].data_ptr() for name, tensor in kept.items())
    assert (repr(model.module.config), len(model.module._forward_pre_hooks)) == before
    assert not baked.training


def test_a_change_of_the_original_shows() -> None:
    model = wrap_module(tiny_model("llama", NUM_BLOCKS))
    baked, inputs = bake(model, MASKS[0]), tiny_inputs(model.module)
    with torch.no_grad():
        model.blocks[3].mlp.down_proj.weight.mul_(2)
    with masked(model, MASKS[0]):
        assert torch.equal(forward(baked, inputs, "logits"), forward(model, inputs, "logits"))


def test_bare_modules_are_taken_and_masks_of_another_size_refused() -> None:
    module = tiny_model("llama", NUM_BLOCKS)
    assert isinstance(bake(module, MASKS[0]), nn.Module)
    with pytest.raises(MaskError, match="the mask is for 4 blocks"):
        bake(module, DepthMask.full(4))


def decode(step: Callable, module: nn.Module, tokens: torch.Tensor, num_steps: int) -> list[torch.Tensor]:
    """Greedy decoding into a static cache; logits of each step, (batch, vocab)."""
    past = StaticCache(config=module.config, max_cache_len=32)
    logits, places = [], torch.arange(tokens.shape[1])[None]
    with torch.no_grad():
        for _ in range(num_steps + 1):
            # A copy, since a compiled step may hand out memory that the next one writes to.
            logits.append(step(input_ids=tokens, position_ids=places, past_key_values=past).logits[:, -1].clone())
            tokens, places = logits[-1].argmax(-1, keepdim=True), places[:, -1:] + 1
    return logits


@pytest.mark.slow
@pytest.mark.parametrize("kept", [(0, 2, 3), (1, 3)])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_a_compiled_decode_loop_is_whole_and_never_recompiles(architecture: str, kept: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    model, mask = model_of(architecture), DepthMask.from_kept(kept, NUM_BLOCKS)
    baked = bake(model, mask)
    graphs: list[int] = []
    traced: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable:
        traced.append(1)
        return graph.forward

    compiled = torch.compile(baked, fullgraph=True, backend=backend)

    def step(**inputs: torch.Tensor) -> object:
        result = compiled(use_cache=True, **inputs)
        graphs.append(len(traced))
        return result

    ours = decode(step, baked, tiny_inputs(model.module, 1, 6)["input_ids"], 7)
    # One graph for the prompt, one for a step, and no other however long it goes on.
    assert graphs == [1] + [2] * 7
    with masked(model, mask), torch.no_grad():
        tokens = tiny_inputs(model.module, 1, 6)["input_ids"]
        for logits in ours:
            expected = model(input_ids=tokens, use_cache=False).logits[:, -1]
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
            tokens = torch.cat([tokens, expected.argmax(-1, keepdim=True)], dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "mixtral", "opt", "bert", "vit"])
def test_exported_program_saved_and_loaded(architecture: str, tmp_path: Path) -> None:
    model, mask = model_of(architecture), MASKS[0]
    baked = bake(model, mask)
    program = export_program(baked, tiny_inputs(model.module, 2, 5))
    skipped = tuple(f"{model.spec.block_path}.{block}." for block in mask.skipped)
    assert not [name for name in program.state_dict if name.startswith(skipped)]
    assert getattr(baked.config, "use_cache", None) == getattr(model.module.config, "use_cache", None)
    torch.export.save(program, tmp_path / "level.pt2")
    loaded = torch.export.load(tmp_path / "level.pt2").module()
    for batch_size, num_tokens in [(1, 1), (3, 12)]:
        inputs = tiny_inputs(model.module, batch_size, num_tokens, seed=1)
        with masked(model, mask):
            expected = forward(model, inputs, model.spec.output)
        torch.testing.assert_close(forward(loaded, inputs, model.spec.output), expected, atol=1e-6, rtol=0)
