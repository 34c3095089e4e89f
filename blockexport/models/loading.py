"""Checkpoint folder to model: safetensors only, no code from the checkpoint unless it is asked for."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from blockexport.errors import ModelSupportError
from blockexport.models.demos import demo_path
from blockexport.models.loaded import LoadedModel, wrap_module

_MAX_LISTED_KEYS = 8


def load_model(
    source: str | Path, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> LoadedModel:
    """Load a Hugging Face folder or a shipped demo model.

    Args:
        source: folder with `config.json` and safetensors weights, or `demo:NAME`.
        dtype: what the weights are held in.
        trust_remote_code: run the Python files of the checkpoint; off unless asked for.

    Returns:
        The model in evaluation mode on the CPU.

    Raises:
        ModelSupportError: the folder is missing, incomplete or damaged, holds only pickled weights, or names an
            architecture that transformers does not know.
    """
    name = str(source)
    folder = demo_path(name) if name.startswith("demo:") else Path(source)
    config = _load_config(folder, trust_remote_code)
    _check_weights(folder)
    model_class = _model_class(folder, config)
    try:
        module, report = model_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0]
        msg = f"cannot load {folder} as {model_class.__name__}: {first_line}; check that the folder is complete"
        raise ModelSupportError(msg) from error
    _check_report(folder, report)
    tokenizer_dir = folder if (folder / "tokenizer.json").exists() else None
    return wrap_module(module, name=name if name.startswith("demo:") else folder.name, tokenizer_dir=tokenizer_dir)


def _load_config(folder: Path, trust_remote_code: bool) -> Any:
    path = folder / "config.json"
    if not path.is_file():
        msg = f"{folder} has no config.json; give a Hugging Face model folder or a shipped demo such as demo:code-lm"
        raise ModelSupportError(msg)
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{path} is not valid JSON ({error}); fetch the checkpoint again"
        raise ModelSupportError(msg) from error
    if "auto_map" in text and not trust_remote_code and text.get("model_type") not in transformers.CONFIG_MAPPING:
        msg = (
            f"{folder} brings its own Python code for model_type {text.get('model_type')!r}, which transformers does "
            "not know; read that code, then pass trust_remote_code=True (--trust-remote-code) to run it"
        )
        raise ModelSupportError(msg)
    try:
        return transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (ValueError, KeyError, OSError, TypeError) as error:
        msg = (
            f"{path} names model_type {text.get('model_type')!r}, which transformers {transformers.__version__} "
            "cannot configure; use an architecture listed in README.md"
        )
        raise ModelSupportError(msg) from error


def _check_weights(folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt"))
        found = f"only {', '.join(pickled)}, which can run code when opened" if pickled else "no weights"
        msg = f"{folder} holds {found}; convert the checkpoint to model.safetensors"
        raise ModelSupportError(msg)


def _model_class(folder: Path, config: Any) -> Any:
    """The class that the checkpoint was saved from, or the bare trunk when it does not say."""
    for name in config.architectures or ():
        model_class = getattr(transformers, name, None)
        if isinstance(model_class, type):
            return model_class
    if config.architectures and not getattr(config, "auto_map", None):
        msg = (
            f"{folder} names architecture {config.architectures[0]!r}, which transformers {transformers.__version__} "
            "lacks; use an architecture listed in README.md"
        )
        raise ModelSupportError(msg)
    return transformers.AutoModel


def _check_report(folder: Path, report: Any) -> None:
    """A checkpoint that fills only part of the model would run, and give nonsense."""
    missing = sorted(report.get("missing_keys", ()))
    mismatched = sorted(str(key) for key in report.get("mismatched_keys", ()))
    if missing or mismatched:
        listed = ", ".join((missing + mismatched)[:_MAX_LISTED_KEYS])
        total = len(missing) + len(mismatched)
        msg = f"{folder} lacks or misshapes {total} tensors of the model ({listed}); the checkpoint is incomplete"
        raise ModelSupportError(msg)
