"""Inputs that contradict one another or the checkpoint: one clear line each, whatever the way in."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from blockexport.errors import RequestError
from blockexport.models.loaded import LoadedModel, as_loaded
from blockexport.models.molmo.inputs import last_real
from blockexport.testing.tiny_models import tiny_model
from blockexport.testing.tiny_molmo import MolmoVariant

Batch = dict[str, Any]
Models = Callable[[MolmoVariant], LoadedModel]


def without(batch: Batch, *names: str) -> Batch:
    return {name: tensor for name, tensor in batch.items() if name not in names}


def beyond(batch: Batch) -> Batch:
    indices = batch["image_input_idx"].clone()
    indices[2, 0, 1] = 24
    return batch | {"image_input_idx": indices}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda b: without(b, "images", "image_masks"), "no picture is given"),
        (lambda b: without(b, "image_input_idx"), "give image_input_idx"),
        (lambda b: without(b, "images"), "give image_input_idx, and either images"),
        (lambda b: b | {"image_features": torch.zeros(3, 3, 4, 32)}, "not both"),
        (beyond, "at 24 of a sequence of 24"),
        (lambda b: b | {"images": b["images"][:, :2]}, r"images is \(3, 2, 16, 48\).*must be \(3, 3, 16, 48\)"),
        (lambda b: b | {"images": b["images"][..., :40]}, r"images is \(3, 3, 16, 40\)"),
        (lambda b: b | {"images": b["images"][:2]}, r"images is \(2, 3, 16, 48\)"),
        (lambda b: b | {"images": b["images"][0]}, r"images is \(3, 16, 48\)"),
        (lambda b: b | {"image_masks": b["image_masks"][..., :4]}, r"image_masks is \(3, 3, 4\)"),
        (lambda b: b | {"image_input_idx": b["image_input_idx"][..., :3]}, r"image_input_idx is \(3, 3, 3\)"),
        (lambda b: b | {"image_input_idx": b["image_input_idx"].flatten()}, "image_input_idx is"),
        (lambda b: b | {"attention_mask": torch.ones(3, 23)}, r"attention_mask is \(3, 23\) for 3 rows"),
        (lambda b: b | {"attention_mask": torch.ones(2, 24)}, r"attention_mask is \(2, 24\)"),
        (lambda b: b | {"attention_mask": torch.ones(3, 1, 24, 24)}, "attention_mask is"),
        (lambda b: b | {"attention_bias": torch.ones(1, 1, 20, 20)}, "attention_bias is"),
        (lambda b: b | {"past_key_values": [(torch.zeros(1), torch.zeros(1))]}, "past_key_values is a list"),
        (lambda b: b | {"inputs_embeds": torch.zeros(3, 24, 32)}, "either input_ids or inputs_embeds"),
        (lambda b: without(b, *b), "either input_ids or inputs_embeds"),
    ],
)
def test_each_is_told(change: Callable[[Batch], Batch], told: str, models: Models, batch: Batch) -> None:
    with torch.no_grad(), pytest.raises(RequestError, match=told) as caught:
        models("pre-norm")(**change(batch))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_generate_tells_too(models: Models, batch: Batch) -> None:
    module: Any = models("pre-norm").module
    for inputs, told in ((beyond(batch), "at 24"), (without(batch, "images", "image_masks"), "no picture is given")):
        with pytest.raises(RequestError, match=told):
            module.generate(**inputs, max_new_tokens=2)


def test_pictures_belong_to_the_prompt(models: Models, batch: Batch) -> None:
    model = models("pre-norm")
    with torch.no_grad():
        cache = model(**batch).past_key_values
        with pytest.raises(RequestError, match="give them with the prompt"):
            model(**batch, past_key_values=cache)


def test_indices_of_nothing_need_no_picture(models: Models, batch: Batch) -> None:
    tokens = batch["input_ids"]
    nowhere = torch.full((3, 3, 4), -100)
    with torch.no_grad():
        model = models("pre-norm")
        expected = model(input_ids=tokens).logits
        assert torch.equal(model(input_ids=tokens, image_input_idx=nowhere).logits, expected)
        no_crops = {"images": torch.zeros(3, 0, 16, 48), "image_input_idx": torch.zeros(3, 0, 4, dtype=torch.long)}
        assert torch.equal(model(input_ids=tokens, **no_crops).logits, expected)


def test_a_model_of_another_kind_takes_no_pictures(batch: Batch) -> None:
    """transformers' classes would pass over arguments that they do not know."""
    model = as_loaded(tiny_model("qwen2", 2))
    tokens = {"input_ids": batch["input_ids"].clamp(0, 96)}
    assert model(**tokens).logits.shape == (3, 24, 97)
    with pytest.raises(RequestError, match="images were given, but Qwen2ForCausalLM reads text only"):
        model(**tokens, images=batch["images"])
    assert model.generate(**tokens, max_new_tokens=2).shape == (3, 26)
    with pytest.raises(RequestError, match="images were given, but Qwen2ForCausalLM reads text only"):
        model.generate(**tokens, images=batch["images"])
    with pytest.raises(RequestError, match="BertModel is no decoder"):
        as_loaded(tiny_model("bert", 2)).generate(**tokens)


def test_the_last_real_column() -> None:
    flags = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    assert last_real(flags).tolist() == [2, 3, 3, 0, 3]
