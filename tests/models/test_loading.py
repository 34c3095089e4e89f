"""Checkpoint folders, good and bad. A bad one gives one clear line and stays as it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from blockexport.errors import ModelSupportError
from blockexport.models.loading import load_model
from blockexport.testing.tiny_models import ARCHITECTURES, DECODERS, ENCODERS, tiny_inputs, tiny_model

BLOCK_PATHS = {"gpt2": "transformer.h", "opt": "model.decoder.layers", "bert": "encoder.layer", "vit": "vit.layers"}
WEIGHTS = "model.safetensors"
# gemma3 has a per-block list in its configuration.
NUM_BLOCKS = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("gemma3", NUM_BLOCKS).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def refusal(folder: Path, **options: Any) -> str:
    """The message with which a folder is refused, which must be one line and leave the folder as it was."""
    before = contents(folder)
    with pytest.raises(ModelSupportError) as caught:
        load_model(folder, **options)
    assert contents(folder) == before
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loads_what_was_saved(architecture: str, tmp_path: Path) -> None:
    original = tiny_model(architecture, NUM_BLOCKS)
    original.save_pretrained(tmp_path / "checkpoint")
    loaded = load_model(tmp_path / "checkpoint")
    spec = loaded.spec
    assert type(loaded.module) is type(original)
    assert not loaded.module.training
    assert spec.name == "checkpoint"
    assert spec.architecture == type(original).__name__
    assert spec.kind == ("decoder" if architecture in DECODERS else "encoder" if architecture in ENCODERS else "vision")
    assert spec.num_blocks == loaded.num_blocks == len(loaded.blocks) == NUM_BLOCKS
    assert spec.block_path == BLOCK_PATHS.get(architecture, "model.layers")
    assert original.get_submodule(spec.block_path)[2].state_dict().keys() == loaded.blocks[2].state_dict().keys()
    heads = 4 if architecture in {"gpt2", "opt"} else 2
    assert [(row.num_heads, row.head_dim) for row in spec.kv] == [(heads, 8)] * (len(spec.kv))
    assert len(spec.kv) == (NUM_BLOCKS if spec.kind == "decoder" else 0)
    assert (spec.vocab_size, spec.context_tokens) == ((0, 0) if spec.kind == "vision" else (97, 64))
    assert spec.image_shape == ((1, 8, 8) if spec.kind == "vision" else ())
    assert spec.output == ("last_hidden_state" if spec.kind == "encoder" else "logits")
    inputs = tiny_inputs(original)
    with torch.no_grad():
        assert torch.equal(getattr(loaded(**inputs), spec.output), getattr(original(**inputs), spec.output))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shapes_without_weights(architecture: str, tmp_path: Path) -> None:
    original = tiny_model(architecture, NUM_BLOCKS)
    original.save_pretrained(tmp_path)
    full = load_model(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    empty = load_model(tmp_path, config_only=True)
    assert type(empty.module) is type(original)
    assert all(tensor.is_meta for tensor in empty.module.state_dict().values())
    shapes = {name: tensor.shape for name, tensor in empty.module.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in original.state_dict().items()}
    assert empty.spec.digest != full.spec.digest
    assert empty.spec.model_copy(update={"digest": full.spec.digest}) == full.spec


def test_digest_follows_weights_and_configuration_only(folder: Path, tmp_path: Path) -> None:
    digest = load_model(folder).spec.digest
    moved = folder.rename(tmp_path / "elsewhere")
    assert load_model(moved).spec.digest == digest
    edit_weights(moved, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][0].add_(1e-3))
    changed = load_model(moved).spec.digest
    assert changed != digest
    edit_config(moved, sliding_window=7)
    assert load_model(moved).spec.digest not in {digest, changed}


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_load_as_float32_unless_asked_otherwise(stored: torch.dtype, tmp_path: Path) -> None:
    tiny_model("llama", 2).to(stored).save_pretrained(tmp_path)
    assert load_file(tmp_path / WEIGHTS)["model.norm.weight"].dtype == stored
    assert {p.dtype for p in load_model(tmp_path).module.parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(tmp_path, dtype=stored).module.parameters()} == {stored}


def test_sharded_checkpoints_load(tmp_path: Path) -> None:
    original = tiny_model("llama", NUM_BLOCKS)
    original.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    inputs = tiny_inputs(original)
    assert torch.equal(load_model(tmp_path)(**inputs).logits, original(**inputs).logits)
    max(tmp_path.glob("*.safetensors")).unlink()
    refusal(tmp_path)


def test_a_tokenizer_beside_the_weights_is_found(folder: Path) -> None:
    assert load_model(folder).tokenizer_dir is None
    (folder / "tokenizer.json").write_text("{}")
    assert load_model(folder).tokenizer_dir == folder


def test_missing_folder_and_unknown_demo() -> None:
    with pytest.raises(ModelSupportError, match=r"config\.json.*demo:code-lm"):
        load_model("/nowhere/at/all")
    with pytest.raises(
        ModelSupportError,
        match="no demo model 'demo:nope'; shipped are demo:code-lm, demo:digits-molmo, demo:digits-vit",
    ):
        load_model("demo:nope")


def test_pickled_weights_are_refused_unopened(folder: Path) -> None:
    marker = folder.parent / "ran"
    (folder / WEIGHTS).unlink()
    # What a pickle that opens a file looks like; had it been opened, the marker would be there.
    (folder / "pytorch_model.bin").write_bytes(f"c__builtin__\nopen\n(V{marker}\nVw\ntR.".encode())
    assert "pytorch_model.bin, which can run code when opened; convert" in refusal(folder)
    assert not marker.exists()


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert "holds no weights" in refusal(folder)


@pytest.mark.parametrize("size", [0, 4, 5000, -10])
def test_truncated_weights(size: int, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])
    assert "Gemma3ForCausalLM" in refusal(folder)


def test_corrupt_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\xff" * 500)
    assert "header" in refusal(folder)


def test_missing_and_misshapen_tensors_are_named(folder: Path) -> None:
    name = "model.layers.2.input_layernorm.weight"
    edit_weights(folder, lambda tensors: tensors.pop(name))
    assert f"lacks or misshapes 1 tensors of the model ({name})" in refusal(folder)
    edit_weights(folder, lambda tensors: tensors.update({name: torch.zeros(7)}))
    assert f"({name} (7,))" in refusal(folder)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", b"[]", b"3"])
def test_config_that_is_no_json_object(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "nope"}, "'nope'"),
        ({"model_type": None}, "None"),
        ({"architectures": ["NopeForCausalLM"]}, "NopeForCausalLM"),
        ({"architectures": ["Gemma3TextConfig"]}, "Gemma3TextConfig"),
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_size": 64}, "model.embed_tokens.weight (97, 32)"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types"),
        ({"layer_types": ["full_attention"] * 3 + ["nonsense"]}, "layer_types"),
        ({"num_hidden_layers": 0, "layer_types": []}, "num_hidden_layers"),
        ({"num_hidden_layers": 5, "layer_types": ["full_attention"] * 5}, "model.layers.4."),
        ({"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}, "num_hidden_layers"),
    ],
)
def test_config_that_does_not_fit(changes: dict[str, Any], named: str, folder: Path) -> None:
    edit_config(folder, **changes)
    assert named in refusal(folder)


@pytest.mark.parametrize("architecture", ["t5", "mamba"])
def test_architectures_without_one_list_of_blocks_are_refused(architecture: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": 20, "d_model": 8, "num_layers": 2, "num_hidden_layers": 2, "hidden_size": 8}
    config = transformers.AutoConfig.for_model(architecture, **sizes, d_kv=4, d_ff=8, num_heads=2, state_size=4)
    models = {"t5": transformers.T5ForConditionalGeneration, "mamba": transformers.MambaForCausalLM}
    models[architecture](config).save_pretrained(tmp_path)
    with pytest.raises(ModelSupportError):
        load_model(tmp_path)


REMOTE_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({marker!r}).touch()
class OddConfig(LlamaConfig):
    model_type = "odd"
class OddForCausalLM(LlamaForCausalLM):
    config_class = OddConfig
"""


def test_code_of_the_checkpoint_runs_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, marker = tmp_path / "odd", tmp_path / "ran"
    original = tiny_model("llama", 2)
    original.save_pretrained(folder)
    (folder / "odd.py").write_text(REMOTE_CODE.format(marker=str(marker)))
    edit_config(
        folder,
        model_type="odd",
        architectures=["OddForCausalLM"],
        auto_map={"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddForCausalLM"},
    )
    assert "trust_remote_code=True" in refusal(folder)
    assert not marker.exists()
    loaded = load_model(folder, trust_remote_code=True)
    assert marker.exists()
    assert loaded.spec.kind == "decoder"
    inputs = tiny_inputs(original)
    assert torch.equal(loaded(**inputs).logits, original(**inputs).logits)
