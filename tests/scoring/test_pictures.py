"""Scores on batches with pictures: the block that does nothing is found, and padding counts for nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from blockexport.core.masks import DepthLadder, DepthLevel, DepthMask
from blockexport.errors import ConfigError, DataError, ScoresError
from blockexport.masking.made_up import MadeUpPrompts
from blockexport.masking.masked import masked
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.models.loading import load_model
from blockexport.pipeline.build import BuildOptions, build
from blockexport.scoring.score import score
from blockexport.selection import select
from blockexport.testing.tiny_models import tiny_model
from blockexport.testing.tiny_molmo import MOLMO_VARIANTS, MolmoVariant, tiny_picture_batch, write_tiny_molmo
from blockexport.testing.tiny_vlms import tiny_llava

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


@pytest.mark.parametrize("variant", MOLMO_VARIANTS)
def test_a_vision_block_scores_what_the_whole_model_loses_without_it(variant: MolmoVariant, tmp_path: Path) -> None:
    write_tiny_molmo(tmp_path, variant)
    model = load_model(tmp_path)
    side = model.vision_side
    assert side is not None
    data = [labelled(seed) for seed in range(2)]
    found = score(model, method="loss_drop", data=data, vision=True, protected=[0])
    assert (found.num_blocks, found.protected, len(found.halves)) == (side.num_blocks, (0,), 2)
    (full,) = score(model, method="loss_drop", data=data[:1], vision=True, protected=[0]).scores[1:2]
    losses = []
    for mask in (DepthMask.full(side.num_blocks), DepthMask.full(side.num_blocks).without(1)):
        with masked(side, mask), torch.no_grad():
            logits = model(**{name: t for name, t in data[0].items() if name != "labels"}, use_cache=False).logits
        targets = data[0]["labels"][:, 1:]
        rows = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")
        losses.append(float((rows.sum(1) / (targets != -100).sum(1)).mean()))
    assert full == pytest.approx(losses[1] - losses[0], rel=1e-3, abs=1e-6)
    assert abs(full) > 1e-6
    assert found.model == f"{model.spec.digest}:vision"
    with pytest.raises(ConfigError, match="use one of accuracy_drop, loss_drop, with data"):
        score(model, method="activation", data=data, vision=True)


def test_pictures_of_another_architecture_and_models_without_any() -> None:
    model = wrap_module(tiny_llava(num_blocks=3, vision_blocks=4))
    prompts = MadeUpPrompts.with_pictures(model.spec, (7, 7), np.random.default_rng(3)).padded_left
    batch = {name: torch.from_numpy(array) for name, array in prompts.pictures.items()}
    tokens = torch.from_numpy(prompts.tokens)
    found = score(model, method="loss_drop", data=[batch | {"input_ids": tokens, "labels": tokens}], vision=True)
    assert all(abs(value) > 1e-7 for value in found.scores)
    # The tower has as many blocks as the text stack, so that only the digest tells their scores apart.
    ladder = select(found, depths=[3, 2])
    with pytest.raises(ScoresError, match="the scores are of another model"):
        select(replace(found, model="0" * 64), depths=[2], strategy="beam", model=model, data=[batch])
    with pytest.raises(ScoresError, match="rests on scores of another model"):
        build(model, DepthLadder(two_blocks(), model=ladder.model), out="never")
    text = DepthLadder.from_masks([DepthMask.full(3)])
    with pytest.raises(ScoresError, match="score it --vision"):
        build(
            model,
            DepthLadder(two_blocks()),
            out="never",
            options=BuildOptions(vision_ladder=replace(text, model=model.spec.digest)),
        )
    with pytest.raises(ConfigError, match="reads no pictures"):
        score(wrap_module(tiny_model("llama")), method="loss_drop", data=[{"input_ids": tokens}], vision=True)


def two_blocks() -> tuple[DepthLevel, ...]:
    return (DepthLevel("d2", DepthMask.from_kept([0, 1], 3)),)


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
