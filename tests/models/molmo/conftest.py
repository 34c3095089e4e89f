"""Tiny checkpoints of every variant, models loaded from them, and a batch with pictures."""

import copy
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file, save_file

from blockexport.masking.oracle import _InDouble
from blockexport.models.loaded import LoadedModel
from blockexport.models.loading import load_model
from blockexport.testing.tiny_molmo import MolmoVariant, tiny_picture_batch, write_tiny_molmo

torch.set_num_threads(1)


_BLOCK = re.compile(r"^model\.transformer\.blocks\.(\d+)\.")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[MolmoVariant], Path]:
    """`checkpoints(variant)` is the folder of a tiny random model."""

    @cache
    def write(variant: MolmoVariant) -> Path:
        return write_tiny_molmo(tmp_path_factory.mktemp("molmo") / variant, variant)

    return write


@pytest.fixture(scope="session")
def models(checkpoints: Callable[[MolmoVariant], Path]) -> Callable[[MolmoVariant], LoadedModel]:
    """`models(variant)` is that model, loaded."""

    @cache
    def load(variant: MolmoVariant) -> LoadedModel:
        return load_model(checkpoints(variant))

    return load


@pytest.fixture(scope="session")
def removed(
    checkpoints: Callable[[MolmoVariant], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[MolmoVariant, tuple[int, ...]], LoadedModel]:
    """`removed(variant, kept)` is loaded from a checkpoint in which only the kept blocks were ever written."""

    @cache
    def load(variant: MolmoVariant, kept: tuple[int, ...]) -> LoadedModel:
        source = checkpoints(variant)
        folder = tmp_path_factory.mktemp("shallow")
        entries = json.loads((source / "config.json").read_text())
        entries["n_layers" if variant == "mixture" else "num_hidden_layers"] = len(kept)
        (folder / "config.json").write_text(json.dumps(entries))
        weights = {}
        for name, tensor in load_file(source / "model.safetensors").items():
            match = _BLOCK.match(name)
            if match is None:
                weights[name] = tensor
            elif int(match[1]) in kept:
                weights[f"model.transformer.blocks.{kept.index(int(match[1]))}.{name[match.end() :]}"] = tensor
        save_file(weights, folder / "model.safetensors")
        return load_model(folder)

    return load


@pytest.fixture(scope="session")
def exactly() -> Callable[[LoadedModel], Callable[..., Any]]:
    """`exactly(model)` calls a copy of the model in float64, with every cast to float32 widened as well."""

    @cache
    def widen(model: LoadedModel) -> Callable[..., Any]:
        module: Any = copy.deepcopy(model.module).double()
        if module.config.num_experts:
            # The fast ways of computing experts exist for float32 and less.
            module.set_experts_implementation("eager")
        rotary, text = module.language_model.rotary_emb, module.config.text_config
        half = text.hidden_size // text.num_attention_heads // 2
        # transformers rounds these to float32 when the model is built.
        rotary.inv_freq = text.rope_parameters["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)

        def call(method: str = "__call__", **inputs: Any) -> Any:
            tensors = {name: t for name, t in inputs.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}
            wide = inputs | {name: tensor.double() for name, tensor in tensors.items()}
            with torch.no_grad(), _InDouble():
                return getattr(module, method)(**wide)

        return call

    return widen


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three rows: a picture of three crops, text only, and a picture of one crop; see `tiny_picture_batch`."""
    return tiny_picture_batch()
