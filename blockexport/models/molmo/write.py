"""A model in memory to a folder in the published layout."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from blockexport.core.jsonio import dump_json, write_atomically
from blockexport.models.molmo.config import MODEL_TYPE
from blockexport.models.molmo.keys import key_map


def write_checkpoint(module: Any, folder: Path) -> None:
    """Write weights, `config.json` and `generation_config.json` of a `MolmoForCausalLM`; weights are one file."""
    parameters: dict[str, torch.Tensor] = dict(module.named_parameters())
    tensors = {
        name: torch.cat([piece.view(parameters) for piece in pieces]).detach().contiguous()
        for name, pieces in key_map(module.config, module).items()
    }
    write_atomically(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    entries = {"model_type": MODEL_TYPE, "architectures": [type(module).__name__]} | module.config.published
    write_atomically(folder / "config.json", dump_json(entries) + "\n")
    module.generation_config.save_pretrained(folder)
