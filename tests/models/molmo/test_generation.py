"""`generate` on padded batches with pictures, against a loop of whole passes over each row alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from blockexport.models.loaded import LoadedModel
from blockexport.testing.tiny_molmo import MOLMO_VARIANTS, MolmoVariant

Models = Callable[[MolmoVariant], LoadedModel]
NEW = 6
each_variant = pytest.mark.parametrize("variant", MOLMO_VARIANTS)


def greedy(module: Any, **inputs: Any) -> torch.Tensor:
    tokens: torch.Tensor = module.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    assert tokens.shape[1] == inputs["input_ids"].shape[1] + NEW
    return tokens[:, -NEW:]


def by_hand(module: Any, **inputs: Any) -> list[int]:
    """Greedy tokens of one row whose last column is a token, a whole uncached pass each."""
    tokens = inputs.pop("input_ids")
    for _ in range(NEW):
        with torch.no_grad():
            logits = module(input_ids=tokens, **inputs, use_cache=False).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    chosen: list[int] = tokens[0, -NEW:].tolist()
    return chosen


@each_variant
def test_rows_of_a_batch_get_what_they_get_alone(variant: MolmoVariant, models: Models, batch: dict[str, Any]) -> None:
    module: Any = models(variant).module
    together = greedy(module, **batch)
    for row in range(3):
        alone = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        num_tokens = int((alone["input_ids"][0] != -1).nonzero().max()) + 1
        # Padding on the right is cut off; what stands elsewhere stays.
        alone["input_ids"] = alone["input_ids"][:, :num_tokens]
        assert together[row].tolist() == by_hand(module, **alone)
    assert len({tuple(row) for row in together.tolist()}) == 3


@each_variant
def test_masks_and_caches_change_nothing(variant: MolmoVariant, models: Models, batch: dict[str, Any]) -> None:
    module: Any = models(variant).module
    expected = greedy(module, **batch)
    mask = (batch["input_ids"] != -1).long()
    longer = torch.cat([mask, torch.ones(3, NEW, dtype=torch.long)], dim=1)
    assert torch.equal(greedy(module, **batch, attention_mask=mask), expected)
    assert torch.equal(greedy(module, **batch, attention_mask=longer), expected)
    assert torch.equal(greedy(module, **batch, use_cache=False), expected)
    positional = module.generate(batch.pop("input_ids"), **batch, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(positional[:, -NEW:], expected)


@each_variant
def test_a_static_cache(variant: MolmoVariant, models: Models, batch: dict[str, Any]) -> None:
    module: Any = models(variant).module
    assert torch.equal(greedy(module, **batch, cache_implementation="static"), greedy(module, **batch))


def test_padding_on_the_right_is_no_mistake(
    models: Models, batch: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    greedy(models("pre-norm").module, **batch, pad_token_id=0)
    assert "padding" not in caplog.text


def test_ready_features(models: Models, batch: dict[str, Any]) -> None:
    module: Any = models("pre-norm").module
    expected = greedy(module, **batch)
    with torch.no_grad():
        batch["image_features"] = module.encode_images(batch.pop("images"), batch.pop("image_masks"))
    assert torch.equal(greedy(module, **batch), expected)


def test_pictures_are_encoded_once(models: Models, batch: dict[str, Any]) -> None:
    module: Any = models("pre-norm").module
    seen = []
    handle = module.image_encoder.register_forward_hook(lambda *_: seen.append(1))
    heads = []
    counter = module.lm_head.register_forward_pre_hook(lambda _, args: heads.append(args[0].shape[1]))
    greedy(module, **batch)
    handle.remove()
    counter.remove()
    assert len(seen) == 1
    # The head sees one position of each row at every step, the prompt's included.
    assert heads == [1] * NEW


def test_beams(models: Models, batch: dict[str, Any]) -> None:
    module: Any = models("pre-norm").module
    beams = module.generate(**batch, max_new_tokens=NEW, do_sample=False, num_beams=3)
    assert beams.shape == (3, 24 + NEW)

    # Of the continuations that beams and greedy choice find, the beams' is at least as likely.
    def likelihood(new: torch.Tensor, row: int) -> float:
        alone = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        num_tokens = int((alone["input_ids"][0] != -1).nonzero().max()) + 1
        prompt = alone.pop("input_ids")[:, :num_tokens]
        with torch.no_grad():
            logits = module(input_ids=torch.cat([prompt, new[None]], dim=1), **alone).logits[0, num_tokens - 1 : -1]
        return float(logits.log_softmax(-1).gather(1, new[:, None]).sum())

    chosen = greedy(module, **batch)
    for row in range(3):
        assert likelihood(beams[row, -NEW:], row) >= likelihood(chosen[row], row) - 1e-4


def test_a_conversation_goes_on_in_its_cache(models: Models, batch: dict[str, Any]) -> None:
    module: Any = models("pre-norm").module
    first = {name: tensor[:1] for name, tensor in batch.items()}
    begun = module.generate(**first, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    question = torch.tensor([[5, 6, 7]])
    tokens = torch.cat([begun.sequences, question], dim=1)
    continued = module.generate(tokens, past_key_values=begun.past_key_values, max_new_tokens=NEW, do_sample=False)
    expected = by_hand(module, **(first | {"input_ids": tokens}))
    assert continued[0, -NEW:].tolist() == expected


def test_generation_stops_where_the_checkpoint_says(models: Models, batch: dict[str, Any]) -> None:
    module: Any = models("pre-norm").module
    first = {name: tensor[:1] for name, tensor in batch.items()}
    stop = int(greedy(module, **first)[0, 2])
    ended = module.generate(**first, max_new_tokens=NEW, do_sample=False, eos_token_id=stop, pad_token_id=0)
    assert ended.shape[1] <= 24 + 3
    assert ended[0, -1] == stop
