"""Checkpoint folder to model: safetensors only, no code from the checkpoint unless it is asked for."""

import json
import re
from pathlib import Path
from typing import Any

import torch
import transformers

from blockexport.errors import ModelSupportError
from blockexport.models.demos import demo_path
from blockexport.models.loaded import LoadedModel, wrap_module

_MAX_LISTED_KEYS = 8
_MAX_REASON = 300


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
            ignore_mismatched_sizes=True,  # they are reported, and refused below by name
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:
        # The file is anything, and each layer below raises classes of its own.
        msg = f"cannot load {folder} as {model_class.__name__}: {_reason(error)}; check that the folder is complete"
        raise ModelSupportError(msg) from error
    _check_report(folder, report)
    tokenizer_dir = folder if (folder / "tokenizer.json").exists() else None
    name = name if name.startswith("demo:") else folder.name
    loaded = wrap_module(module, name=name, tokenizer_dir=tokenizer_dir)
    _check_surplus_blocks(folder, report, loaded)
    return loaded


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
    if not isinstance(text, dict):
        msg = f"{path} holds a {type(text).__name__}, not a JSON object; fetch the checkpoint again"
        raise ModelSupportError(msg)
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
    except Exception as error:
        # Every configuration class checks its values in its own way.
        kind, version = text.get("model_type"), transformers.__version__
        if kind in transformers.CONFIG_MAPPING:
            msg = f"{path} is no valid configuration of a {kind}: {_reason(error)}; correct it"
        else:
            msg = (
                f"{path} names model_type {kind!r}, which transformers {version} cannot configure; "
                "use an architecture listed in README.md"
            )
        raise ModelSupportError(msg) from error


def _reason(error: Exception) -> str:
    """An error of another package in one line."""
    return " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__


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
        if isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel):
            return model_class
    own_code = getattr(config, "auto_map", None) or {}
    for auto_class, target in own_code.items():
        if str(target).rpartition(".")[2] in (config.architectures or ()):
            return getattr(transformers, auto_class)
    if config.architectures and not own_code:
        msg = (
            f"{folder} names architecture {config.architectures[0]!r}, which transformers {transformers.__version__} "
            "lacks; use an architecture listed in README.md"
        )
        raise ModelSupportError(msg)
    return transformers.AutoModel


def _check_report(folder: Path, report: Any) -> None:
    """A checkpoint that fills only part of the model would run, and give nonsense."""
    missing = sorted(report.get("missing_keys", ()))
    mismatched = sorted(f"{name} {tuple(shape)}" for name, shape, _ in report.get("mismatched_keys", ()))
    if missing or mismatched:
        listed = ", ".join((missing + mismatched)[:_MAX_LISTED_KEYS])
        total = len(missing) + len(mismatched)
        msg = f"{folder} lacks or misshapes {total} tensors of the model ({listed}); the checkpoint is incomplete"
        raise ModelSupportError(msg)


def _check_surplus_blocks(folder: Path, report: Any, loaded: LoadedModel) -> None:
    """Blocks in the checkpoint that the configuration does not count would be dropped without a word."""
    own_name = loaded.spec.block_path.rpartition(".")[2]
    pattern = re.compile(rf"(?:^|\.){re.escape(own_name)}\.(\d+)\.")
    found = {int(match[1]) for key in report.get("unexpected_keys", ()) for match in pattern.finditer(str(key))}
    surplus = sorted(block for block in found if block >= loaded.num_blocks)
    if surplus:
        msg = (
            f"{folder} holds weights of blocks {surplus}, but config.json counts {loaded.num_blocks} blocks; "
            "correct num_hidden_layers"
        )
        raise ModelSupportError(msg)
