"""The masked model against one from which the blocks were really removed, and against itself afterwards."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockexport.core.masks import DepthMask
from blockexport.errors import MaskError
from blockexport.masking.masked import MaskedModel, masked
from blockexport.models.loaded import LoadedModel, as_loaded, wrap_module
from blockexport.testing.tiny_models import ARCHITECTURES, DECODERS, VOCAB_SIZE, tiny_inputs, tiny_model

NUM_BLOCKS = 5
# Block 0 skipped, the last skipped, one alone in the middle, all.
KEPT = [(1, 3, 4), (0, 1, 3), (2,), (0, 1, 2, 3, 4)]
# Longer than the tiny models' sliding windows, so that tokens fall out of them.
NUM_TOKENS = 9
NEW_TOKENS = 8


@cache
def model_of(architecture: str) -> LoadedModel:
    return wrap_module(tiny_model(architecture, NUM_BLOCKS))


def padded(side: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Three prompts of 9, 4 and 7 tokens."""
    tokens = torch.randint(1, VOCAB_SIZE, (3, NUM_TOKENS), generator=torch.Generator().manual_seed(seed))
    columns = torch.arange(NUM_TOKENS)
    lengths = torch.tensor([[9], [4], [7]])
    mask = (columns < lengths if side == "right" else columns >= NUM_TOKENS - lengths).long()
    return {"input_ids": tokens * mask, "attention_mask": mask}


def output(model: Any, inputs: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    with torch.no_grad():
        result = getattr(model(**inputs), name)
    if "attention_mask" in inputs:
        # What stands at a padding position is nobody's business.
        result = result * inputs["attention_mask"][..., None]
    return result


def generate(module: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cached greedy generation, as users call it; logits and tokens."""
    result = module.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert result.sequences.shape[1] == NUM_TOKENS + NEW_TOKENS
    return torch.stack(result.logits, dim=1)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_a_model_without_the_blocks(architecture: str, kept: tuple[int, ...], remove: Callable) -> None:
    model, mask = model_of(architecture), DepthMask.from_kept(kept, NUM_BLOCKS)
    smaller = remove(model, mask)
    batches = [tiny_inputs(model.module)] if model.spec.kind == "vision" else [padded("right"), padded("left")]
    for inputs in batches:
        with masked(model, mask):
            ours = output(model, inputs, model.spec.output)
        assert torch.equal(ours, output(smaller, inputs, model.spec.output))
        if mask.skipped:
            assert not torch.allclose(ours, output(model, inputs, model.spec.output), atol=1e-3)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("architecture", DECODERS)
def test_cached_generation_equals_a_model_without_the_blocks(
    architecture: str, kept: tuple[int, ...], remove: Callable
) -> None:
    model, mask = model_of(architecture), DepthMask.from_kept(kept, NUM_BLOCKS)
    inputs = padded("left")
    with masked(model, mask):
        ours = generate(model.module, inputs)
    assert torch.equal(ours, generate(remove(model, mask), inputs))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "gemma3"])
def test_cached_steps_equal_one_uncached_pass(architecture: str) -> None:
    model, mask = model_of(architecture), DepthMask.from_kept((1, 3, 4), NUM_BLOCKS)
    tokens = padded("left")["input_ids"][:1]
    with masked(model, mask), torch.no_grad():
        whole = model(input_ids=tokens, use_cache=False).logits
        first = model(input_ids=tokens[:, :3], use_cache=True)
        cache = first.past_key_values
        steps = [
            model(input_ids=tokens[:, i : i + 1], past_key_values=cache, use_cache=True).logits
            for i in range(3, NUM_TOKENS)
        ]
    torch.testing.assert_close(torch.cat([first.logits, *steps], dim=1), whole, atol=1e-5, rtol=0)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    architecture=st.sampled_from(["llama", "gemma2", "gpt2", "bert"]),
    flags=st.lists(st.booleans(), min_size=NUM_BLOCKS, max_size=NUM_BLOCKS).filter(any),
    side=st.sampled_from(["left", "right"]),
    seed=st.integers(0, 1000),
)
def test_any_mask_on_any_batch(architecture: str, flags: list[bool], side: str, seed: int, remove: Callable) -> None:
    model, mask = model_of(architecture), DepthMask.from_bools(flags)
    smaller, inputs = remove(model, mask), padded(side, seed)
    with masked(model, mask):
        ours = output(model, inputs, model.spec.output)
        continued = generate(model.module, inputs) if model.spec.kind == "decoder" else None
    assert torch.equal(ours, output(smaller, inputs, model.spec.output))
    if continued is not None:
        assert torch.equal(continued, generate(smaller, inputs))


def snapshot(model: LoadedModel) -> dict[str, Any]:
    """All of a model that a mask could have touched."""
    modules = dict(model.module.named_modules())
    return {
        "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
        "classes": {name: type(module) for name, module in modules.items()},
        "forwards": {name: getattr(module.forward, "__func__", module.forward) for name, module in modules.items()},
        "hooks": {
            name: [len(value) for key, value in sorted(vars(module).items()) if key.endswith("_hooks")]
            for name, module in modules.items()
        },
        "config": repr(model.module.config),
        "generation": repr(getattr(model.module, "generation_config", None)),
        "state": {name: tensor.clone() for name, tensor in model.module.state_dict().items()},
        "storage": {name: tensor.data_ptr() for name, tensor in model.module.state_dict().items()},
        "training": [module.training for module in modules.values()],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    states = before.pop("state"), after.pop("state")
    assert before == after
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0] | states[1])


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "bert", "vit"])
def test_the_model_is_untouched_afterwards(architecture: str) -> None:
    model, mask = as_loaded(tiny_model(architecture, NUM_BLOCKS)), DepthMask.from_kept((1, 3), NUM_BLOCKS)
    inputs = tiny_inputs(model.module)
    before, reference = snapshot(model), output(model, inputs, model.spec.output)

    def fail() -> None:
        with masked(model, mask):
            output(model, inputs, model.spec.output)
            msg = "in the middle"
            raise KeyboardInterrupt(msg)

    with masked(model, mask):
        output(model, inputs, model.spec.output)
    assert_same(dict(before), snapshot(model))
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert_same(dict(before), snapshot(model))
    assert torch.equal(output(model, inputs, model.spec.output), reference)


def test_an_error_within_the_model_leaves_it_untouched_too() -> None:
    model = as_loaded(tiny_model("llama", NUM_BLOCKS))
    before = snapshot(model)
    too_large = {"input_ids": torch.full((1, 3), VOCAB_SIZE)}
    with pytest.raises(IndexError), masked(model, DepthMask.from_skipped([0], NUM_BLOCKS)):
        model(**too_large)
    assert_same(before, snapshot(model))


def test_a_forward_that_someone_else_put_in_place_comes_back() -> None:
    model = as_loaded(tiny_model("llama", NUM_BLOCKS))
    block = model.blocks[2]
    original = block.forward
    calls = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    # accelerate and some quantisation tools shadow a forward so.
    block.forward = watched
    inputs = tiny_inputs(model.module)
    with masked(model, DepthMask.from_skipped([2], NUM_BLOCKS)):
        model(**inputs)
    assert not calls
    assert block.forward is watched
    model(**inputs)
    assert calls


def test_apply_and_remove() -> None:
    model, mask = model_of("llama"), DepthMask.from_kept((1, 3), NUM_BLOCKS)
    inputs = padded("left")
    full = output(model, inputs, "logits")
    with masked(model, mask):
        expected = output(model, inputs, "logits")
    handle = MaskedModel(model, mask)
    handle.apply()
    assert torch.equal(output(model, inputs, "logits"), expected)
    handle.remove()
    handle.remove()
    assert torch.equal(output(model, inputs, "logits"), full)
    handle.apply()
    assert torch.equal(output(model, inputs, "logits"), expected)
    handle.remove()


def test_a_bare_module_is_taken() -> None:
    module = tiny_model("llama", NUM_BLOCKS)
    mask, inputs = DepthMask.from_kept((1, 3), NUM_BLOCKS), padded("left")
    with masked(module, mask):
        bare = output(module, inputs, "logits")
    with masked(model_of("llama"), mask):
        assert torch.equal(bare, output(model_of("llama"), inputs, "logits"))


def test_nested_use_is_refused_and_the_outer_mask_stays() -> None:
    model, mask = model_of("llama"), DepthMask.from_kept((1, 3), NUM_BLOCKS)
    inputs = padded("left")
    with masked(model, mask):
        expected = output(model, inputs, "logits")
        with pytest.raises(MaskError, match="do not nest"), masked(model, DepthMask.from_kept((1,), NUM_BLOCKS)):
            pass
        assert torch.equal(output(model, inputs, "logits"), expected)
        # The same weights through another handle are the same model.
        with pytest.raises(MaskError, match="do not nest"):
            MaskedModel(model.module, mask).apply()
    assert not torch.equal(output(model, inputs, "logits"), expected)


@pytest.mark.parametrize("num_blocks", [NUM_BLOCKS - 1, NUM_BLOCKS + 1])
def test_masks_of_another_size_are_refused(num_blocks: int) -> None:
    with pytest.raises(MaskError, match=f"the mask is for {num_blocks} blocks"):
        masked(model_of("llama"), DepthMask.full(num_blocks))
