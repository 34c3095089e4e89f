"""Published checkpoint folder to model, one tensor at a time."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig

from blockexport.core.jsonio import read_json
from blockexport.errors import ModelSupportError
from blockexport.models.molmo.config import MolmoConfig
from blockexport.models.molmo.keys import KeyMap, key_map, published_shape
from blockexport.models.molmo.model import MolmoForCausalLM
from blockexport.models.pretrained import check_weights
from blockexport.models.reading import ReadOptions

INDEX_FILE = "model.safetensors.index.json"
_GENERATION_FILE = "generation_config.json"
_MAX_LISTED_KEYS = 8


def read_checkpoint(folder: Path, entries: Mapping[str, Any], options: ReadOptions) -> MolmoForCausalLM:
    """Build the model that a folder holds.

    Weights go from the files into the model's own tensors piece by piece, so that at no time more than the model and
    one piece is in memory.

    Args:
        folder: with safetensors files.
        entries: what its `config.json` says.
        options: how; no Python file of the checkpoint is run whatever they say.

    Raises:
        ModelSupportError: the configuration is not supported, a file is damaged, or tensors are missing, of other
            shapes, or more than the model has.
    """
    config = MolmoConfig(published=dict(entries))
    with torch.device("meta"):
        module: MolmoForCausalLM = MolmoForCausalLM(config).to(options.dtype)
    if not options.config_only:
        check_weights(folder)
        _fill(module, folder)
    _set_generation(module, folder)
    module.eval()
    return module


def _set_generation(module: MolmoForCausalLM, folder: Path) -> None:
    """Take over how the checkpoint wants to generate; where it does not say, it ends at its tokenizer's own end."""
    if (folder / _GENERATION_FILE).is_file():
        try:
            module.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            msg = f"cannot read {folder / _GENERATION_FILE}: {' '.join(str(error).split())}; fetch the checkpoint again"
            raise ModelSupportError(msg) from error
    if module.generation_config.eos_token_id is None:
        stop = module.config.text_config.eos_token_id
        module.generation_config.eos_token_id = _end_of_text(folder) if stop is None else stop


def _end_of_text(folder: Path) -> int | None:
    """Id of the token that `tokenizer_config.json` calls the end of a text."""
    settings, vocabulary = folder / "tokenizer_config.json", folder / "tokenizer.json"
    if not (settings.is_file() and vocabulary.is_file()):
        return None
    token = read_json(settings).get("eos_token")
    token = token.get("content") if isinstance(token, Mapping) else token
    ids: dict[Any, int] = {added["content"]: added["id"] for added in read_json(vocabulary).get("added_tokens", ())}
    return ids.get(token)


def _fill(module: MolmoForCausalLM, folder: Path) -> None:
    shapes: dict[str, torch.Tensor] = dict(module.named_parameters())
    table = key_map(module.config, module)
    files = _weight_files(folder)
    try:
        _check_tensors(folder, table, shapes, dict(_published_shapes(files)))
        filled = {name: torch.empty_like(tensor, device="cpu") for name, tensor in shapes.items()}
        with torch.no_grad():
            for path in files:
                _copy(path, table, filled)
    except (SafetensorError, OSError) as error:
        msg = f"cannot read the weights in {folder}: {' '.join(str(error).split())}; fetch the checkpoint again"
        raise ModelSupportError(msg) from error
    module.load_state_dict(filled, assign=True)
    # Its tables are computed, not stored, and were made on the meta device.
    rotary = module.language_model.rotary_emb
    module.language_model.rotary_emb = type(rotary)(module.config.text_config)


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: those that the index names, or all there are."""
    index = folder / INDEX_FILE
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{index} is no index of safetensors files; fetch the checkpoint again"
        raise ModelSupportError(msg) from error
    absent = sorted(name for name in names if not (folder / name).is_file())
    if absent:
        msg = f"{folder} lacks {', '.join(absent)}, which {INDEX_FILE} names; the checkpoint is incomplete"
        raise ModelSupportError(msg)
    return sorted(folder / name for name in names)


def _published_shapes(files: list[Path]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (safe_open is no dict)
                yield name, tuple(file.get_slice(name).get_shape())


def _copy(path: Path, table: KeyMap, filled: dict[str, torch.Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (safe_open is no dict)
            rows, start = file.get_slice(name), 0
            for piece in table[name]:
                view = piece.view(filled)
                view.copy_(rows[start : start + view.shape[0]])
                start += view.shape[0]


def _check_tensors(
    folder: Path, table: KeyMap, parameters: dict[str, torch.Tensor], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a checkpoint with other tensors than the configuration says, naming them.

    Raises:
        ModelSupportError: tensors are missing, surplus, or of other shapes.
    """
    wanted = {name: published_shape(pieces, parameters) for name, pieces in table.items()}
    misshapen = [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    faults = {
        "lacks": sorted(wanted.keys() - found.keys()),
        "has besides": sorted(found.keys() - wanted.keys()),
        "misshapes": misshapen,
    }
    if any(faults.values()):
        told = "; ".join(f"{fault} {_listed(names)}" for fault, names in faults.items() if names)
        msg = f"{folder} does not hold the model of its config.json: {told}; correct config.json or fetch it again"
        raise ModelSupportError(msg)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED_KEYS} more" if len(names) > _MAX_LISTED_KEYS else ""
    return ", ".join(names[:_MAX_LISTED_KEYS]) + more
