"""Scores on batches with pictures: the block that does nothing is found, and padding counts for nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockexport.errors import DataError
from blockexport.models.loaded import LoadedModel
from blockexport.models.loading import load_model
from blockexport.scoring.score import score
from blockexport.testing.tiny_molmo import MOLMO_VARIANTS, MolmoVariant, tiny_picture_batch, write_tiny_molmo

# Tensors that carry what a block computes; zeros there make it pass its input on.
OUTPUTS: dict[MolmoVariant, tuple[str, ...]] = {
    "pre-norm": ("attn_out.weight", "ff_out.weight"),
    "post-norm": ("attn_norm.weight", "ff_norm.weight"),
    "mixture": ("attn.attn_out.weight", *(f"mlp.experts.{expert}.down_proj.weight" for expert in range(6))),
}
IDLE = 2


def labelled(seed: int) -> dict[str, torch.Tensor]:
    batch = tiny_picture_batch(seed)
    tokens = batch["input_ids"]
    return batch | {"labels": tokens.where((tokens >= 0) & (tokens < 97), -100)}


def with_idle_block(variant: MolmoVariant, folder: Path) -> LoadedModel:
    write_tiny_molmo(folder, variant)
    tensors = load_file(folder / "model.safetensors")
    for name in OUTPUTS[variant]:
        tensors[f"model.transformer.blocks.{IDLE}.{name}"].zero_()
    save_file(tensors, folder / "model.safetensors")
    return load_model(folder)


@pytest.mark.parametrize("variant", MOLMO_VARIANTS)
def test_the_block_that_does_nothing_is_found(variant: MolmoVariant, tmp_path: Path) -> None:
    model = with_idle_block(variant, tmp_path)
    data = [labelled(seed) for seed in range(2)]
    for method in ("loss_drop", "block_influence"):
        scores: Any = score(model, method=method, data=data).scores
        assert abs(scores[IDLE]) < 1e-6
        assert all(abs(value) > 1e-4 for i, value in enumerate(scores) if i != IDLE)


def test_padding_counts_for_nothing(tmp_path: Path) -> None:
    """-1 says what is padding; so does an attention mask."""
    model = with_idle_block("pre-norm", tmp_path)
    batch = labelled(0)
    masked = batch | {"attention_mask": (batch["input_ids"] != -1).long()}
    filled = masked | {"input_ids": batch["input_ids"].where(batch["input_ids"] != -1, 50)}
    for method in ("activation", "block_influence"):
        ours, told, other = (score(model, method=method, data=[data]).scores for data in (batch, masked, filled))
        assert ours == told == other


def test_tokens_outside_the_table_are_refused(tmp_path: Path) -> None:
    model = with_idle_block("pre-norm", tmp_path)
    for outside in (105, -2):
        batch = labelled(0)
        batch["input_ids"][0, 0] = outside
        with pytest.raises(DataError, match=f"token id {outside} is outside the vocabulary.*0 to 104"):
            score(model, method="activation", data=[batch])
