"""The recorded reference: what it holds, and that its tolerance is that of fp32 rounding."""

import copy
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch

from blockexport.core.masks import DepthMask
from blockexport.core.parity import TOLERANCE_FACTOR
from blockexport.masking.oracle import NUM_STEPS, Oracle, _InDouble
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.testing.tiny_models import ARCHITECTURES, DECODERS, VOCAB_SIZE, tiny_inputs, tiny_model

NUM_BLOCKS = 4
MASK = DepthMask.from_kept((1, 3), NUM_BLOCKS)


@cache
def model_of(architecture: str) -> LoadedModel:
    return wrap_module(tiny_model(architecture, NUM_BLOCKS))


@pytest.mark.parametrize("architecture", DECODERS)
def test_decoder_cases_against_a_model_without_the_blocks(architecture: str, remove: Callable) -> None:
    model = model_of(architecture)
    smaller = remove(model, MASK)
    cases = {case.check: case for case in Oracle(model, seed=1).record(MASK)}
    assert list(cases) == ["prefill", "decode", "padded", "chunked"]
    assert {name: case.expected.shape[:2] for name, case in cases.items()} == {
        "prefill": (1, 1),
        "decode": (1, 1 + NUM_STEPS),
        "padded": (3, 1 + NUM_STEPS),
        "chunked": (1, 1),
    }
    assert NUM_STEPS >= 8
    for case in cases.values():
        assert 0 < case.tolerance < 1e-4
        prompt, lengths, following = (case.inputs[name] for name in ("prompt", "lengths", "continuation"))
        for row, length in enumerate(lengths):
            tokens = torch.from_numpy(np.concatenate([prompt[row, :length], following[row]]))[None]
            with torch.no_grad():
                logits = smaller(input_ids=tokens, use_cache=False).logits[0].numpy()[-case.expected.shape[1] :]
            assert np.abs(logits[:, case.columns] - case.expected[row]).max() <= case.tolerance
            assert (logits.argmax(-1) == case.argmax[row]).all()
    # The continuation is what greedy decoding says.
    assert (cases["padded"].inputs["continuation"] == cases["padded"].argmax[:, :-1]).all()
    assert len(set(cases["padded"].inputs["lengths"])) > 1


@pytest.mark.parametrize("architecture", ["bert", "vit"])
def test_single_pass_case_against_a_model_without_the_blocks(architecture: str, remove: Callable) -> None:
    model = model_of(architecture)
    (case,) = Oracle(model, seed=1).record(MASK)
    assert case.check == "forward"
    assert 0 < case.tolerance < 1e-4
    with torch.no_grad():
        output = remove(model, MASK)(**{name: torch.from_numpy(array) for name, array in case.inputs.items()})
    expected = getattr(output, model.spec.output).numpy()
    if architecture == "bert":
        assert len(set(case.inputs["attention_mask"].sum(1))) > 1
        expected = expected * case.inputs["attention_mask"][..., None]
    assert np.abs(expected - case.expected).max() <= case.tolerance


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_exact_reference_rounds_nowhere_to_fp32(architecture: str) -> None:
    """Two orders of the same sums agree to fp64's precision, which they would not after one fp32 rounding."""
    module = Oracle(model_of(architecture), seed=1)._exact.module
    inputs = tiny_inputs(model_of(architecture).module)
    name = model_of(architecture).spec.output
    if "pixel_values" in inputs:
        inputs = {"pixel_values": inputs["pixel_values"].double()}
    alone = {key: tensor[:1] for key, tensor in inputs.items()}
    with torch.no_grad(), _InDouble():
        whole = getattr(module(**inputs), name)
        permuted_batch = getattr(module(**{key: tensor.flip(0) for key, tensor in inputs.items()}), name).flip(0)
        first = getattr(module(**alone), name)
    assert whole.dtype == torch.float64
    assert (whole - permuted_batch).abs().max() < 1e-12
    assert (whole[:1] - first).abs().max() < 1e-12


def test_the_tolerance_is_the_rounding_of_fp32() -> None:
    """GPT-2 casts nothing by itself, so its fp64 twin needs no help, and the error can be had another way."""
    model = model_of("gpt2")
    exact = copy.deepcopy(model.module).double()
    (case,) = (case for case in Oracle(model, seed=1).record(DepthMask.full(NUM_BLOCKS)) if case.check == "prefill")
    tokens = torch.from_numpy(case.inputs["prompt"])
    with torch.no_grad():
        logits = exact(input_ids=tokens).logits[:, -1:].numpy()
        own = model(input_ids=tokens).logits[:, -1:].numpy()
    error = max(np.abs(own - logits).max(), np.finfo(np.float32).eps * np.abs(logits).max())
    assert case.tolerance == pytest.approx(TOLERANCE_FACTOR * error, rel=0.5)


def test_recording_is_repeatable_and_leaves_the_model_alone() -> None:
    model = model_of("llama")
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    first, again, other = (Oracle(model, seed).record(MASK)[1] for seed in (1, 1, 2))
    assert np.array_equal(first.expected, again.expected)
    assert first.tolerance == again.tolerance
    assert not np.array_equal(first.inputs["prompt"], other.inputs["prompt"])
    assert first.inputs["prompt"].max() < VOCAB_SIZE
    after = model.module.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert after["model.norm.weight"].dtype == torch.float32


def test_a_large_vocabulary_is_recorded_in_part_and_its_argmax_in_full() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1000, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    model = wrap_module(LlamaForCausalLM(config))
    case = Oracle(model, seed=1).record(DepthMask.full(2))[0]
    assert case.expected.shape == (1, 1, 256)
    assert len(np.unique(case.columns)) == 256
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(case.inputs["prompt"])).logits[:, -1:].numpy()
    assert (case.argmax == logits.argmax(-1)).all()
    assert np.abs(logits[:, :, case.columns] - case.expected).max() <= case.tolerance
