"""Checkpoints that transformers itself can load: which class, and whether all of it was filled."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from blockexport.errors import ModelSupportError
from blockexport.models.reading import ReadOptions

_MAX_LISTED_KEYS = 8
_MAX_REASON = 300


def read_pretrained(
    folder: Path, entries: Mapping[str, Any], options: ReadOptions
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the model that a folder holds, by the class that it was saved from.

    Args:
        folder: with safetensors files.
        entries: what its `config.json` says.
        options: how.

    Returns:
        The module, and the names of tensors that it has no place for.

    Raises:
        ModelSupportError: the folder is incomplete or damaged, holds only pickled weights, or names an architecture
            that transformers does not know.
    """
    config = _load_config(folder, entries, options.trust_remote_code)
    if options.config_only:
        return _without_weights(folder, config, options), ()
    check_weights(folder)
    model_class = _model_class(folder, config)
    try:
        module, report = model_class.from_pretrained(
            folder,
            config=config,
            dtype=options.dtype,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused below by name
            trust_remote_code=options.trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:
        # The file is anything, and each layer below raises classes of its own.
        msg = f"cannot load {folder} as {model_class.__name__}: {_reason(error)}; check that the folder is complete"
        raise ModelSupportError(msg) from error
    _check_report(folder, report)
    return module, tuple(str(key) for key in report.get("unexpected_keys", ()))


def _without_weights(folder: Path, config: Any, options: ReadOptions) -> nn.Module:
    model_class = _model_class(folder, config)
    trust = {"trust_remote_code": options.trust_remote_code} if hasattr(model_class, "from_config") else {}
    build = getattr(model_class, "from_config", None) or model_class._from_config  # noqa: SLF001  (there is no other)
    with torch.device("meta"):
        module: Any = build(config, **trust).to(options.dtype)
    if getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None):
        # The fast way of computing experts checks for bfloat16 where there is nothing to compute.
        module.set_experts_implementation("batched_mm")
    return module  # type: ignore[no-any-return]


def _load_config(folder: Path, entries: Mapping[str, Any], trust_remote_code: bool) -> Any:
    if "auto_map" in entries and not trust_remote_code and entries.get("model_type") not in transformers.CONFIG_MAPPING:
        msg = (
            f"{folder} brings its own Python code for model_type {entries.get('model_type')!r}, which transformers "
            "does not know; read that code, then pass trust_remote_code=True (--trust-remote-code) to run it"
        )
        raise ModelSupportError(msg)
    try:
        return transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        # Every configuration class checks its values in its own way.
        kind, version = entries.get("model_type"), transformers.__version__
        if kind in transformers.CONFIG_MAPPING:
            msg = f"{folder}/config.json is no valid configuration of a {kind}: {_reason(error)}; correct it"
        else:
            msg = (
                f"{folder}/config.json names model_type {kind!r}, which transformers {version} cannot configure; "
                "use an architecture listed in README.md"
            )
        raise ModelSupportError(msg) from error


def _reason(error: Exception) -> str:
    """An error of another package in one line."""
    return " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__


def check_weights(folder: Path) -> None:
    """Refuse a folder without safetensors files.

    Raises:
        ModelSupportError: there is none.
    """
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


def check_surplus_blocks(folder: Path, unexpected: tuple[str, ...], block_path: str, num_blocks: int) -> None:
    """Blocks in the checkpoint that the configuration does not count would be dropped without a word.

    Raises:
        ModelSupportError: there are some.
    """
    own_name = block_path.rpartition(".")[2]
    pattern = re.compile(rf"(?:^|\.){re.escape(own_name)}\.(\d+)\.")
    found = {int(match[1]) for key in unexpected for match in pattern.finditer(key)}
    surplus = sorted(block for block in found if block >= num_blocks)
    if surplus:
        msg = (
            f"{folder} holds weights of blocks {surplus}, but config.json counts {num_blocks} blocks; "
            "correct num_hidden_layers"
        )
        raise ModelSupportError(msg)
