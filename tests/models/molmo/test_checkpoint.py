"""Folders in the published layout, good and bad, and the way back."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from blockexport.errors import ModelSupportError, RequestError
from blockexport.models.loading import load_model
from blockexport.models.molmo import checkpoint
from blockexport.models.molmo.config import MolmoConfig
from blockexport.models.molmo.keys import key_map, published_shape
from blockexport.models.molmo.model import MolmoForCausalLM
from blockexport.testing.tiny_molmo import (
    MOLMO_VARIANTS,
    MolmoSizes,
    MolmoVariant,
    molmo_entries,
    molmo_shapes,
    write_tiny_molmo,
)

WEIGHTS = "model.safetensors"
each_variant = pytest.mark.parametrize("variant", MOLMO_VARIANTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_molmo(tmp_path / "checkpoint")


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def refusal(folder: Path) -> str:
    with pytest.raises(ModelSupportError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


@each_variant
def test_names_and_shapes_are_the_published_ones(variant: MolmoVariant) -> None:
    sizes = MolmoSizes(num_blocks=3, hidden_size=48, ff_size=20, crop_pixels=24, vision_blocks=4, feature_layers=(-1,))
    with torch.device("meta"):
        module = MolmoForCausalLM(MolmoConfig(published=molmo_entries(variant, sizes)))
    parameters: dict[str, torch.Tensor] = dict(module.named_parameters())
    table = key_map(module.config, module)
    assert {name: published_shape(pieces, parameters) for name, pieces in table.items()} == molmo_shapes(variant, sizes)
    # Every number of the checkpoint has exactly one place.
    counted = sum(piece.view(parameters).numel() for pieces in table.values() for piece in pieces)
    assert counted == sum(tensor.numel() for tensor in parameters.values())


@each_variant
def test_what_is_read_is_written_again(variant: MolmoVariant, tmp_path: Path) -> None:
    source = write_tiny_molmo(tmp_path / "a", variant)
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    model: Any = load_model(source)
    assert not model.module.training
    model.module.save_pretrained(tmp_path / "b")
    theirs, ours = load_file(source / WEIGHTS), load_file(tmp_path / "b" / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    again = load_model(tmp_path / "b")
    assert again.spec.digest == model.spec.digest
    assert again.spec.model_copy(update={"name": "a"}) == model.spec


def test_a_model_made_here_is_written_and_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = MolmoSizes(num_blocks=2)
    module = MolmoForCausalLM(MolmoConfig(published=molmo_entries("pre-norm", sizes))).eval()
    assert all(torch.isfinite(tensor).all() for tensor in module.parameters())
    module.save_pretrained(tmp_path)
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(input_ids=tokens).logits, module(input_ids=tokens).logits)


def test_all_of_it_can_be_trained(batch: dict[str, Any], tmp_path: Path) -> None:
    module = load_model(write_tiny_molmo(tmp_path, "mixture")).module
    module(**batch).logits[batch["input_ids"] != -1].square().mean().backward()
    last = "image_encoder.tower.blocks.8."
    idle = {name for name, tensor in module.named_parameters() if tensor.grad is None or not tensor.grad.any()}
    assert all(name.startswith(last) for name in idle)
    assert idle


@each_variant
def test_digest_follows_weights_and_configuration(variant: MolmoVariant, tmp_path: Path) -> None:
    folder = write_tiny_molmo(tmp_path / "a", variant)
    digest = load_model(folder).spec.digest
    moved = folder.rename(tmp_path / "b")
    assert load_model(moved).spec.digest == digest
    edit(moved, lambda tensors: tensors["model.vision_backbone.pad_embed"].mul_(1.01))
    assert load_model(moved).spec.digest != digest
    other = write_tiny_molmo(tmp_path / "c", variant)
    entries = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(entries | {"rope_theta": 123.0}))
    assert load_model(other).spec.digest != digest


def test_shards(folder: Path, batch: dict[str, Any]) -> None:
    expected = load_model(folder)(**batch).logits
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    shards = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, own in shards.items():
        save_file({name: tensors[name] for name in own}, folder / file)
    (folder / WEIGHTS).unlink()
    assert torch.equal(load_model(folder)(**batch).logits, expected)
    # With an index, whatever else lies there is left alone.
    save_file({"adapter": torch.zeros(1)}, folder / "other.safetensors")
    assert "adapter" in refusal(folder)
    index = {"weight_map": {name: file for file, own in shards.items() for name in own}}
    (folder / checkpoint.INDEX_FILE).write_text(json.dumps(index))
    assert torch.equal(load_model(folder)(**batch).logits, expected)
    (folder / "model-2-of-2.safetensors").unlink()
    assert "lacks model-2-of-2.safetensors" in refusal(folder)
    (folder / checkpoint.INDEX_FILE).write_text("{}")
    assert "is no index" in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_are_held_as_asked(dtype: torch.dtype, folder: Path) -> None:
    module = load_model(folder, dtype=dtype).module
    tensors = load_file(folder / WEIGHTS)
    assert {tensor.dtype for tensor in module.state_dict().values()} == {dtype}
    head = module.get_parameter("lm_head.weight")
    assert torch.equal(head, tensors["model.transformer.ff_out.weight"].to(dtype))


def test_no_more_than_one_piece_is_held_besides_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[weakref.ref[torch.Tensor]] = []
    sizes: list[int] = []

    class Watched:
        """A file whose tensors are counted while they live."""

        def __init__(self, path: Path, framework: str) -> None:
            self._file = safe_open(path, framework)

        def __enter__(self) -> "Watched":
            return self

        def __exit__(self, *_: object) -> None: ...

        def keys(self) -> list[str]:
            return list(self._file.keys())

        def get_slice(self, name: str) -> "Rows":
            return Rows(self._file.get_slice(name))

    class Rows:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def get_shape(self) -> list[int]:
            shape: list[int] = self._inner.get_shape()
            return shape

        def __getitem__(self, index: Any) -> torch.Tensor:
            assert all(piece() is None for piece in pieces)
            tensor: torch.Tensor = self._inner[index]
            pieces.append(weakref.ref(tensor))
            sizes.append(tensor.numel())
            return tensor

    monkeypatch.setattr(checkpoint, "safe_open", Watched)
    module = load_model(folder, dtype=torch.bfloat16).module
    assert sum(sizes) == sum(parameter.numel() for parameter in module.parameters())


def test_parameters_own_their_memory(folder: Path) -> None:
    parameters = list(load_model(folder).module.parameters())
    assert len({tensor.untyped_storage().data_ptr() for tensor in parameters}) == len(parameters)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in parameters)


def test_one_error_lists_all_that_is_wrong(folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.transformer.blocks.2.attn_out.weight"]
        del tensors["model.vision_backbone.pad_embed"]
        tensors["model.transformer.blocks.1.ff_proj.weight"] = torch.zeros(46, 32)
        tensors["model.transformer.blocks.5.ff_proj.weight"] = torch.zeros(48, 32)

    edit(folder, spoil)
    message = refusal(folder)
    assert "lacks model.transformer.blocks.2.attn_out.weight, model.vision_backbone.pad_embed;" in message
    assert "has besides model.transformer.blocks.5.ff_proj.weight;" in message
    assert "misshapes model.transformer.blocks.1.ff_proj.weight (46, 32) instead of (48, 32);" in message


@each_variant
def test_any_single_fault_is_named(variant: MolmoVariant, tmp_path: Path) -> None:
    for name in ("model.transformer.ln_f.weight", "model.vision_backbone.image_vit.class_embedding"):
        folder = write_tiny_molmo(tmp_path / name / "a", variant)
        edit(folder, lambda tensors, name=name: tensors.pop(name))  # type: ignore[misc]
        assert f"lacks {name};" in refusal(folder)
        edit(folder, lambda tensors, name=name: tensors.update({name: torch.zeros(3)}))  # type: ignore[misc]
        assert f"{name} (3,) instead of" in refusal(folder)


def test_a_long_list_is_cut(folder: Path) -> None:
    edit(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "vision" in name])
    message = refusal(folder)
    assert " more;" in message
    assert len(message) < 1000


def test_another_variants_weights_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_molmo(tmp_path / "a", "pre-norm")
    (folder / "config.json").write_text(json.dumps(molmo_entries("post-norm", MolmoSizes())))
    message = refusal(folder)
    assert "lacks model.transformer.blocks.0.k_norm.weight" in message
    assert "has besides model.transformer.blocks.0.att_proj.bias" in message


def test_damaged_and_pickled_weights(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    for damaged in (content[:-8], content[:4], b"\xff" * 64):
        (folder / WEIGHTS).write_bytes(damaged)
        assert "cannot read the weights" in refusal(folder)
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin, which can run code" in refusal(folder)
    (folder / "pytorch_model.bin").unlink()
    assert "holds no weights" in refusal(folder)
    assert load_model(folder, config_only=True).spec.num_blocks == 5


def test_text_only(folder: Path, batch: dict[str, Any]) -> None:
    entries = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(entries | {"vision_backbone": None}))
    assert "has besides model.vision_backbone." in refusal(folder)
    edit(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "vision" in name])
    model = load_model(folder)
    assert model.spec.vision is None
    assert model.module.image_encoder is None
    assert model(input_ids=batch["input_ids"]).logits.shape == (3, 24, 97)
    with pytest.raises(RequestError, match="reads text only"):
        model(**batch)
    with pytest.raises(RequestError, match="reads text only"):
        model.module(**batch)
    with pytest.raises(RequestError, match="cannot encode images"):
        model.module.encode_images(batch["images"])


def test_generation_ends_where_the_folder_says(folder: Path) -> None:
    assert load_model(folder).spec.stop_tokens == ()
    added = {"added_tokens": [{"id": 96, "content": "<|endoftext|>"}]}
    (folder / "tokenizer.json").write_text(json.dumps(added))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    model = load_model(folder)
    assert model.spec.stop_tokens == (96,)
    assert model.tokenizer_dir == folder
    entries = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(entries | {"eos_token_id": 7}))
    assert load_model(folder).spec.stop_tokens == (7,)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    assert load_model(folder).spec.stop_tokens == (5, 6)
    (folder / "generation_config.json").write_text("{")
    assert "generation_config.json" in refusal(folder)


def test_code_in_the_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    entries = json.loads((folder / "config.json").read_text())
    entries["auto_map"] = {"AutoModelForCausalLM": "modeling_molmo.MolmoForCausalLM"}
    (folder / "config.json").write_text(json.dumps(entries))
    (folder / "modeling_molmo.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert load_model(folder).spec.architecture == "MolmoForCausalLM"
    assert load_model(folder, trust_remote_code=True).spec.architecture == "MolmoForCausalLM"
    assert not (tmp_path / "ran").exists()
