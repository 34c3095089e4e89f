"""What the stages are told of a model in memory."""

from pathlib import Path

import pytest
import torch

from blockexport.core.masks import DepthMask
from blockexport.errors import MaskError, ModelSupportError, RequestError
from blockexport.models.loaded import as_loaded, digest_module, wrap_module
from blockexport.models.loading import load_model
from blockexport.testing.tiny_models import tiny_model


def test_a_bare_module_and_a_loaded_model_are_both_taken() -> None:
    module = tiny_model("llama", 2)
    loaded = as_loaded(module)
    assert loaded.module is module
    assert as_loaded(loaded) is loaded


def test_wrapping_ends_training_mode() -> None:
    module = tiny_model("llama", 2)
    module.train()
    assert not wrap_module(module).module.training


@pytest.mark.parametrize(("stop", "expected"), [(None, ()), (5, (5,)), ([5, 9], (5, 9)), (0, (0,))])
def test_stop_tokens(stop: object, expected: tuple[int, ...]) -> None:
    module = tiny_model("llama", 2)
    module.config.eos_token_id, module.generation_config.eos_token_id = stop, None
    assert wrap_module(module).spec.stop_tokens == expected


def test_stop_tokens_of_the_generation_settings_come_first(tmp_path: Path) -> None:
    module = tiny_model("llama", 2)
    module.config.eos_token_id, module.generation_config.eos_token_id = 2, [2, 7]
    module.save_pretrained(tmp_path)
    assert load_model(tmp_path).spec.stop_tokens == (2, 7)


@pytest.mark.parametrize(("pad", "expected"), [(None, 0), (0, 0), (3, 3), (-1, 0), (10_000, 0)])
def test_pad_token(pad: int | None, expected: int) -> None:
    module = tiny_model("llama", 2)
    module.config.pad_token_id = pad
    assert wrap_module(module).spec.pad_token == expected


def test_masks_of_another_size_are_refused() -> None:
    with pytest.raises(MaskError, match=r"the mask is for 5 blocks, but .* has 4"):
        as_loaded(tiny_model("llama", 4)).check_mask(DepthMask.full(5))


def test_per_block_lists_are_held_against_the_blocks() -> None:
    loaded = as_loaded(tiny_model("gemma3", 4))
    loaded.check_mask(DepthMask.full(4))
    loaded.module.config.layer_types = ["full_attention"] * 3
    with pytest.raises(ModelSupportError, match=r"config\.layer_types has 3 entries for 4 blocks"):
        loaded.check_mask(DepthMask.full(4))
    with pytest.raises(ModelSupportError, match="layer_types"):
        wrap_module(loaded.module)


def test_digest_sees_every_tensor_and_the_configuration() -> None:
    module = tiny_model("gpt2", 2)
    digest = digest_module(module)
    assert digest_module(tiny_model("gpt2", 2)) == digest
    seen = {digest}
    for tensor in module.state_dict().values():
        first = tensor.view(-1)[:1]
        before = first.clone()
        first.add_(1)
        seen.add(digest_module(module))
        first.copy_(before)
    # The head is the embedding, so the two are one tensor; each of the others makes a digest of its own.
    assert len(seen) == len(module.state_dict())
    module.config.layer_norm_epsilon = 1e-3
    assert digest_module(module) not in seen


def test_pictures_for_an_architecture_whose_pictures_no_adapter_knows() -> None:
    """transformers would pass over them, or read them by the module's own vision side, which no engine is made of."""
    model = wrap_module(tiny_model("llama"))
    with pytest.raises(
        RequestError, match=r"reads text only; leave pictures out, .* an adapter knows: llava, molmo, molmo2, qwen2_vl$"
    ):
        model(input_ids=torch.zeros(1, 2, dtype=torch.long), pixel_values=torch.zeros(1))
