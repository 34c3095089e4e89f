"""Checkpoint folder to model: safetensors only, no code from the checkpoint unless it is asked for."""

import json
from pathlib import Path
from typing import Any

import torch

from blockexport.errors import ModelSupportError
from blockexport.models.adapter import adapter_of
from blockexport.models.demos import demo_path
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.models.reading import ReadOptions


def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    config_only: bool = False,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a Hugging Face folder, a published Molmo checkpoint or a shipped demo model.

    Args:
        source: folder with `config.json` and safetensors weights, or `demo:NAME`.
        dtype: what the weights are held in.
        config_only: build shapes only, on the meta device; the folder then needs no weights.
        trust_remote_code: run the Python files of the checkpoint; off unless asked for.

    Returns:
        The model in evaluation mode on the CPU.

    Raises:
        ModelSupportError: the folder is missing, incomplete or damaged, holds only pickled weights, or names an
            architecture that transformers does not know.
    """
    name = str(source)
    folder = demo_path(name) if name.startswith("demo:") else Path(source)
    entries = _read_config(folder)
    adapter = adapter_of(str(entries.get("model_type")))
    module = adapter.read(folder, entries, ReadOptions(dtype, config_only, trust_remote_code))
    tokenizer_dir = folder if (folder / "tokenizer.json").exists() else None
    name = name if name.startswith("demo:") else folder.name
    return wrap_module(module, name=name, tokenizer_dir=tokenizer_dir)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        msg = f"{folder} has no config.json; give a Hugging Face model folder or a shipped demo such as demo:code-lm"
        raise ModelSupportError(msg)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{path} is not valid JSON ({error}); fetch the checkpoint again"
        raise ModelSupportError(msg) from error
    if not isinstance(entries, dict):
        msg = f"{path} holds a {type(entries).__name__}, not a JSON object; fetch the checkpoint again"
        raise ModelSupportError(msg)
    return entries
