"""Attention entropy where it is known in closed form, and the switch to eager attention."""

import math

import numpy as np
import pytest
import torch

from blockexport.core.data import Dataset, Sample
from blockexport.errors import DataError
from blockexport.models.loaded import digest_module, wrap_module
from blockexport.scoring import score
from blockexport.testing.tiny_data import tiny_dataset
from blockexport.testing.tiny_models import ARCHITECTURES, tiny_model


def with_uniform_attention(architecture):
    """A model whose queries are all zero, so that every visible key weighs the same."""
    module = tiny_model(architecture)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".q_proj." in name or ".query." in name:
                parameter.zero_()
    return wrap_module(module)


def texts_of(lengths):
    rng = np.random.default_rng(0)
    samples = [Sample({"input_ids": rng.integers(1, 97, length)}, None, "cosine", "all") for length in lengths]
    return Dataset("texts", tuple(samples))


def test_uniform_causal_attention():
    model = with_uniform_attention("llama")
    # Query t sees t + 1 keys. In one batch, so that two of the texts are padded.
    expected = np.mean([np.mean([math.log(t + 1) for t in range(length)]) for length in (9, 5, 3)])
    scores = score(model, method="attention", data=texts_of([9, 5, 3]), batch_size=3)
    assert scores.scores == pytest.approx([expected] * 6, rel=1e-5)
    assert scores.stderr[0] > 0


def test_uniform_bidirectional_attention():
    model = with_uniform_attention("bert")
    expected = np.mean([math.log(length) for length in (9, 5, 3)])
    scores = score(model, method="attention", data=texts_of([9, 5, 3]), batch_size=3)
    assert scores.scores == pytest.approx([expected] * 6, rel=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_hands_out_weights_and_gets_its_attention_back(architecture):
    module = tiny_model(architecture)
    before = module.config._attn_implementation
    model = wrap_module(module)
    scores = score(model, method="attention", data=tiny_dataset(model.spec.kind))
    assert min(scores.scores) > 0
    assert module.config._attn_implementation == before
    assert digest_module(module) == scores.model


def test_the_attention_comes_back_after_an_error(llama, texts):
    assert llama.module.config._attn_implementation == "sdpa"
    seen = []

    def fail(*_):
        seen.append(llama.module.config._attn_implementation)
        raise ZeroDivisionError

    handle = llama.blocks[0].register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError):
        score(llama, method="attention", data=texts)
    handle.remove()
    assert seen == ["eager"]
    assert llama.module.config._attn_implementation == "sdpa"


def test_an_attention_mask_of_another_shape_is_refused(llama):
    batch = {"input_ids": torch.ones(2, 5, dtype=torch.long), "attention_mask": torch.ones(2, 1, 5, 5)}
    with pytest.raises(DataError, match="attention_mask"):
        score(llama, method="block_influence", data=[batch])
