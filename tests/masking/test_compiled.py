"""The compiled level against the eager masked model, through dynamo and autograd's graph but no code generator."""

import pytest
import torch

import blockexport as bx
from blockexport.core.masks import DepthMask
from blockexport.errors import ConfigError, RequestError
from blockexport.masking.masked import masked
from blockexport.models.loaded import wrap_module
from blockexport.testing.tiny_models import tiny_model

MASK = DepthMask.from_kept((0, 2), 3)


def test_it_continues_as_the_masked_model_does() -> None:
    torch._dynamo.reset()
    model = wrap_module(tiny_model("qwen2", 3))
    level = bx.compile_level(model, MASK, capacity_tokens=16, backend="aot_eager")
    for prompts in (torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]]), torch.tensor([[2, 7, 1], [8, 2, 8]])):
        whole = torch.cat([prompts, level.generate(prompts, 6)], dim=1)
        with masked(model, MASK), torch.no_grad():
            expected = model(input_ids=whole[:, :-1], use_cache=False).logits
        assert torch.equal(whole[:, prompts.shape[1] :], expected[:, prompts.shape[1] - 1 :].argmax(-1))


def test_logits_of_a_step_are_those_of_the_masked_model() -> None:
    torch._dynamo.reset()
    model = wrap_module(tiny_model("qwen2", 3))
    level = bx.compile_level(model, MASK, capacity_tokens=8, backend="aot_eager")
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    level.start(tokens[:, :4])
    assert level.num_tokens == 4
    logits = level.step(tokens[:, 4:])
    with masked(model, MASK), torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits[:, -1]
        exact = wrap_module(tiny_model("qwen2", 3).double())
        with masked(exact, MASK):
            own_error = (exact(input_ids=tokens, use_cache=False).logits[:, -1] - expected).abs().max()
    assert own_error > 0
    assert (logits - expected).abs().max() <= 8 * own_error


def test_the_cache_is_never_overrun() -> None:
    level = bx.compile_level(tiny_model("qwen2", 3), MASK, capacity_tokens=4, backend="aot_eager")
    with pytest.raises(RequestError, match="start"):
        level.step(torch.tensor([[1]]))
    with pytest.raises(RequestError, match="cache of 4"):
        level.start(torch.ones(1, 5, dtype=torch.long))
    with pytest.raises(RequestError, match="5 tokens"):
        level.generate(torch.ones(1, 3, dtype=torch.long), 3)
    level.start(torch.ones(1, 4, dtype=torch.long))
    with pytest.raises(RequestError, match="5 tokens"):
        level.step(torch.tensor([[1]]))


def test_what_has_no_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match="no decoder"):
        bx.compile_level(tiny_model("bert", 3), MASK)
