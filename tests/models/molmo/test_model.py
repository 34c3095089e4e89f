"""The whole model against the second computation, and its forward contract."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from blockexport.models.loaded import LoadedModel
from blockexport.testing.naive_molmo import read_naive_molmo
from blockexport.testing.tiny_molmo import MOLMO_VARIANTS, MolmoVariant

Models = Callable[[MolmoVariant], LoadedModel]
# float64 keeps 16 digits; sums of some hundred terms in another order lose less than four of them.
EXACT = 1e-12
each_variant = pytest.mark.parametrize("variant", MOLMO_VARIANTS)


def run(model: LoadedModel, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
    with torch.no_grad():
        return model(**inputs, **options)


def same(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the order of sums in float64."""
    torch.testing.assert_close(ours, expected, atol=EXACT * max(1.0, float(expected.abs().max())), rtol=0)


@each_variant
@pytest.mark.parametrize("with_masks", [True, False])
def test_equals_the_second_computation(
    variant: MolmoVariant, with_masks: bool, checkpoints: Any, models: Models, exactly: Any, batch: dict[str, Any]
) -> None:
    if not with_masks:
        del batch["image_masks"]
    logits = exactly(models(variant))(**batch).logits.numpy()
    reference = read_naive_molmo(checkpoints(variant))
    in_float32 = run(models(variant), batch).logits.numpy()
    for row in range(len(logits)):
        arrays = {name: tensor[row].numpy().astype(np.float64) for name, tensor in batch.items() if "mask" in name}
        expected = reference.row(
            batch["input_ids"][row].tolist(),
            batch["images"][row].double().numpy(),
            arrays.get("image_masks"),
            batch["image_input_idx"][row].numpy(),
        )
        assert len(expected) == (batch["input_ids"][row] != -1).sum() > 0
        for column, wanted in expected.items():
            scale = max(1.0, np.abs(wanted).max())
            assert np.abs(logits[row, column] - wanted).max() <= EXACT * scale
            assert np.abs(in_float32[row, column] - wanted).max() <= 1e-4 * scale


def test_pictures_matter_and_stay_in_their_row(models: Models, batch: dict[str, Any]) -> None:
    model = models("pre-norm")
    logits = run(model, batch).logits
    for row in (0, 2):
        changed = dict(batch, images=batch["images"].clone())
        changed["images"][row, 0] += 0.5
        other = run(model, changed).logits
        real = batch["input_ids"][row] != -1
        assert (other[row] - logits[row])[real].abs().max() > 1e-2
        rest = [i for i in range(3) if i != row]
        assert torch.equal(other[rest], logits[rest])


@each_variant
def test_hidden_states_are_what_enters_each_block_and_the_final_norm(
    variant: MolmoVariant, models: Models, batch: dict[str, Any]
) -> None:
    model = models(variant)
    entered = []
    handles = [block.register_forward_pre_hook(lambda _, args: entered.append(args[0])) for block in model.blocks]
    output = run(model, batch, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    assert len(output.hidden_states) == len(entered) + 1 == model.num_blocks + 1
    assert all(torch.equal(ours, seen) for ours, seen in zip(output.hidden_states, entered, strict=False))
    assert torch.equal(model.module.lm_head(output.hidden_states[-1]), output.logits)
    assert run(model, batch).hidden_states is None


def test_last_logits(models: Models, exactly: Any, batch: dict[str, Any]) -> None:
    call = exactly(models("pre-norm"))
    whole = call(**batch).logits
    # The last column is a token in row 0, and padding in the others.
    last = torch.tensor([23, 16, 22])
    appended = call(**batch, append_last_valid_logits=last).logits
    same(appended[:, :-1], whole[:, :-1])
    same(appended[:, -1], whole[torch.arange(3), last])
    same(call(**batch, append_last_valid_logits=last, last_logits_only=True).logits, appended[:, -1:])
    same(call(**batch, last_logits_only=True).logits, whole[:, -1:])


@each_variant
def test_cached_steps_equal_one_pass(
    variant: MolmoVariant, models: Models, exactly: Any, batch: dict[str, Any]
) -> None:
    call, tokens = exactly(models(variant)), batch["input_ids"]
    more = torch.randint(0, 97, (3, 4), generator=torch.Generator().manual_seed(5))
    whole = call(**batch | {"input_ids": torch.cat([tokens, more], dim=1)}).logits
    first = call(**batch, use_cache=True)
    same(first.logits[tokens != -1], whole[:, :24][tokens != -1])
    mask = tokens != -1
    for i in range(4):
        mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.bool)], dim=1)
        step = call(input_ids=more[:, i : i + 1], attention_mask=mask, past_key_values=first.past_key_values)
        same(step.logits[:, 0], whole[:, 24 + i])


def test_a_mask_may_reach_beyond_the_sequence(models: Models, batch: dict[str, Any]) -> None:
    model = models("pre-norm")
    mask = (batch["input_ids"] != -1).long()
    longer = torch.cat([mask, torch.ones(3, 7, dtype=torch.long)], dim=1)
    expected = run(model, batch).logits
    assert torch.equal(run(model, batch, attention_mask=mask).logits, expected)
    assert torch.equal(run(model, batch, attention_mask=longer).logits, expected)


def test_positions_count_real_tokens_unless_given(models: Models, exactly: Any, batch: dict[str, Any]) -> None:
    call, real = exactly(models("pre-norm")), batch["input_ids"] != -1
    logits = call(**batch).logits[real]
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    same(call(**batch, position_ids=positions).logits[real], logits)
    # Rotary positions are relative: a shift of all changes nothing, a wider spacing does.
    same(call(**batch, position_ids=positions + 5).logits[real], logits)
    assert (call(**batch, position_ids=positions * 2).logits[real] - logits).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.float32])
def test_attention_bias_takes_the_place_of_causality(
    dtype: torch.dtype, models: Models, exactly: Any, batch: dict[str, Any]
) -> None:
    call, real = exactly(models("post-norm")), batch["input_ids"] != -1
    seen = torch.ones(1, 1, 30, 30).tril()
    bias = torch.zeros_like(seen).masked_fill(seen == 0, -torch.inf) if dtype.is_floating_point else seen.to(dtype)
    expected = call(**batch, use_cache=True)
    ours = call(**batch, attention_bias=bias, use_cache=True)
    same(ours.logits[real], expected.logits[real])
    everything = torch.zeros_like(bias) if dtype.is_floating_point else torch.ones_like(bias)
    assert (call(**batch, attention_bias=everything).logits - expected.logits)[real].abs().max() > 1e-2
    # A step behind a cache sees the rows of the bias that belong to it.
    mask = torch.cat([real, torch.ones(3, 1, dtype=torch.bool)], dim=1)
    step = {"input_ids": torch.tensor([[1], [2], [3]]), "attention_mask": mask}
    after = call(**step, attention_bias=bias, past_key_values=ours.past_key_values).logits
    same(after, call(**step, past_key_values=expected.past_key_values).logits)


def test_ready_image_features_take_the_place_of_images(models: Models, batch: dict[str, Any]) -> None:
    model = models("mixture")
    with torch.no_grad():
        features = model.module.encode_images(batch["images"], batch["image_masks"])
        embedded = model.module.embed(batch["input_ids"], features, batch["image_input_idx"])
    assert features.shape == (3, 3, 4, 32)
    expected = run(model, batch).logits
    ready = {"input_ids": batch["input_ids"], "image_input_idx": batch["image_input_idx"], "image_features": features}
    assert torch.equal(run(model, ready).logits, expected)
    mask = batch["input_ids"] != -1
    assert torch.equal(run(model, {"inputs_embeds": embedded, "attention_mask": mask}).logits, expected)


def test_extra_tokens_are_read_and_never_written(models: Models) -> None:
    model = models("pre-norm")
    spec = model.spec
    assert (spec.vocab_size, spec.num_extra_tokens) == (97, 8)
    assert run(model, {"input_ids": torch.tensor([[104, 97, 3]])}).logits.shape == (1, 3, 97)
    table = model.module.get_input_embeddings().weight
    assert table.shape == (105, 32)
    assert torch.equal(model.module.embed(torch.tensor([[104, 0]]))[0], table[[104, 0]])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    variant=st.sampled_from(MOLMO_VARIANTS),
    flags=st.lists(st.booleans(), min_size=12, max_size=12).filter(any),
    num_placed=st.integers(0, 8),
    seed=st.integers(0, 1000),
)
def test_padding_anywhere_equals_no_padding(
    variant: MolmoVariant, flags: list[bool], num_placed: int, seed: int, models: Models, exactly: Any
) -> None:
    """One row with -1 in any columns, beside another one, against the row alone with these columns cut out."""
    call, source = exactly(models(variant)), torch.Generator().manual_seed(seed)
    real = torch.tensor(flags)
    tokens = torch.randint(0, 105, (2, 12), generator=source)
    tokens[0, ~real] = -1
    columns = real.nonzero()[:, 0][:num_placed]
    features = torch.randn(2, 2, 4, 32, generator=source)
    indices = torch.full((2, 2, 4), -100)
    indices[0].view(-1)[: len(columns)] = columns
    indices[1, 0] = torch.tensor([11, -1, 0, 5])
    packed = torch.full((1, 2, 4), -1)
    packed.view(-1)[: len(columns)] = torch.arange(len(columns))
    ours = call(input_ids=tokens, image_features=features, image_input_idx=indices).logits[0, real]
    same(ours, call(input_ids=tokens[:1, real], image_features=features[:1], image_input_idx=packed).logits[0])


def test_a_cache_of_ones_own(models: Models, batch: dict[str, Any]) -> None:
    model = models("pre-norm")
    cache = DynamicCache(config=model.module.config)
    assert torch.equal(run(model, batch, past_key_values=cache).logits, run(model, batch, use_cache=False).logits)
    assert cache.get_seq_length() == 24
    assert run(model, batch, use_cache=False).past_key_values is None
    assert run(model, batch).past_key_values is not None


def test_half_precision_runs(checkpoints: Callable[[MolmoVariant], Path], batch: dict[str, Any]) -> None:
    from blockexport.models.loading import load_model

    model = load_model(checkpoints("pre-norm"), dtype=torch.bfloat16)
    assert {p.dtype for p in model.module.parameters()} == {torch.bfloat16}
    logits = run(model, batch).logits
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits[batch["input_ids"] != -1].float()).all()
