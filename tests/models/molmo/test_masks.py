"""Depth masks: text, padded and picture batches against checkpoints that never held the skipped blocks."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockexport.core.masks import DepthMask
from blockexport.masking.bake import bake
from blockexport.masking.masked import masked
from blockexport.masking.oracle import Oracle
from blockexport.models.loaded import LoadedModel
from blockexport.models.loading import load_model
from blockexport.testing.naive_molmo import read_naive_molmo
from blockexport.testing.tiny_molmo import MOLMO_VARIANTS, MolmoSizes, MolmoVariant, write_tiny_molmo

Models = Callable[[MolmoVariant], LoadedModel]
Removed = Callable[[MolmoVariant, tuple[int, ...]], LoadedModel]
# Block 0 skipped, the last skipped, one alone in the middle, all.
KEPT = [(1, 3, 4), (0, 1, 3), (2,), (0, 1, 2, 3, 4)]
each_variant = pytest.mark.parametrize("variant", MOLMO_VARIANTS)


def select(batch: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """Of the batch with pictures: all of it, its tokens, or tokens without padding."""
    if kind == "picture":
        return batch
    tokens = batch["input_ids"]
    return {"input_ids": tokens if kind == "padded" else tokens[:1]}


@each_variant
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("kind", ["text", "padded", "picture"])
def test_equals_a_checkpoint_without_the_blocks(
    variant: MolmoVariant, kept: tuple[int, ...], kind: str, models: Models, removed: Removed, batch: dict[str, Any]
) -> None:
    model, mask, inputs = models(variant), DepthMask.from_kept(kept, 5), select(batch, kind)
    real = inputs["input_ids"] != -1
    with torch.no_grad():
        with masked(model, mask):
            ours = model(**inputs).logits
            tokens = model.module.generate(**inputs, max_new_tokens=6, do_sample=False)
        smaller = removed(variant, kept)
        assert torch.equal(ours[real], smaller(**inputs).logits[real])
        assert torch.equal(tokens, smaller.module.generate(**inputs, max_new_tokens=6, do_sample=False))
        assert tokens.shape[1] == inputs["input_ids"].shape[1] + 6
        if mask.skipped:
            assert (ours - model(**inputs).logits)[real].abs().max() > 1e-2


@each_variant
def test_equals_the_second_computation_of_the_kept_blocks(
    variant: MolmoVariant, checkpoints: Any, models: Models, batch: dict[str, Any]
) -> None:
    reference = read_naive_molmo(checkpoints(variant), kept=(1, 3, 4))
    with torch.no_grad(), masked(models(variant), DepthMask.from_kept((1, 3, 4), 5)):
        logits = models(variant)(**batch).logits.double().numpy()
    for row, inputs in enumerate(zip(*batch.values(), strict=True)):
        tokens, images, image_masks, indices = inputs
        expected = reference.row(
            tokens.tolist(), images.double().numpy(), image_masks.double().numpy(), indices.numpy()
        )
        for column, wanted in expected.items():
            assert abs(logits[row, column] - wanted).max() <= 1e-4 * max(1.0, abs(wanted).max())


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    variant=st.sampled_from(MOLMO_VARIANTS),
    flags=st.lists(st.booleans(), min_size=5, max_size=5).filter(any),
    padding=st.lists(st.booleans(), min_size=24, max_size=24).filter(lambda columns: not all(columns)),
)
def test_any_mask_with_padding_anywhere(
    variant: MolmoVariant,
    flags: list[bool],
    padding: list[bool],
    models: Models,
    removed: Removed,
    batch: dict[str, Any],
) -> None:
    model, mask = models(variant), DepthMask.from_bools(flags)
    tokens = batch["input_ids"].clone()
    tokens[1, torch.tensor(padding)] = -1
    inputs = dict(batch, input_ids=tokens)
    with torch.no_grad(), masked(model, mask):
        ours = model.module.generate(**inputs, max_new_tokens=4, do_sample=False)
    smaller = removed(variant, mask.kept)
    assert torch.equal(ours, smaller.module.generate(**inputs, max_new_tokens=4, do_sample=False))


@each_variant
def test_baked_models_see_pictures(variant: MolmoVariant, models: Models, batch: dict[str, Any]) -> None:
    model, mask = models(variant), DepthMask.from_kept((0, 2, 4), 5)
    baked: Any = bake(model, mask)
    with torch.no_grad():
        with masked(model, mask):
            expected = model(**batch).logits
            tokens = model.module.generate(**batch, max_new_tokens=4, do_sample=False)
        assert torch.equal(baked(**batch).logits, expected)
        assert torch.equal(baked.generate(**batch, max_new_tokens=4, do_sample=False), tokens)
    assert baked.image_encoder.tower.class_embedding is model.module.image_encoder.tower.class_embedding


@pytest.mark.slow
def test_baked_models_compile_whole(batch: dict[str, Any], tmp_path: Path) -> None:
    torch._dynamo.reset()
    sizes = MolmoSizes(num_blocks=2, vision_blocks=2, feature_layers=(-1, -2))
    model = load_model(write_tiny_molmo(tmp_path, "pre-norm", sizes))
    baked: Any = bake(model, DepthMask.from_kept((1,), 2))
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(baked, fullgraph=True, backend=backend)
    with torch.no_grad():
        assert torch.equal(compiled(**batch, use_cache=False).logits, baked(**batch).logits)
    assert len(graphs) == 1


def test_the_vision_towers_blocks_are_one_list(models: Models, checkpoints: Any, batch: dict[str, Any]) -> None:
    """Skipping one leaves its input as its output, which is also what a feature block then gives."""
    model = models("pre-norm")
    assert model.spec.vision is not None
    blocks = model.module.get_submodule(model.spec.vision.block_path)
    assert len(blocks) == model.spec.vision.num_blocks == 9
    images, image_masks = batch["images"][:1, :1], batch["image_masks"][:1, :1]
    with torch.no_grad():
        before = model.module.encode_images(images, image_masks)
        for skipped in (8, 3, 7):
            handle = blocks[skipped].register_forward_hook(lambda _, args, output: args[0])
            after = model.module.encode_images(images, image_masks)
            handle.remove()
            # Nobody reads the last block.
            assert torch.equal(before, after) == (skipped == 8)
            reference = dataclasses.replace(read_naive_molmo(checkpoints("pre-norm")), skipped_vision=(skipped,))
            expected = np.stack(reference.image_tokens(images[0, 0].double().numpy(), image_masks[0, 0].numpy()))
            assert np.abs(after[0, 0].numpy() - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("variant", ["pre-norm", "mixture"])
def test_the_reference_records_answers(variant: MolmoVariant, models: Models) -> None:
    cases = Oracle(models(variant), seed=0).record(DepthMask.from_kept((1, 3, 4), 5))
    assert [case.check for case in cases] == ["prefill", "decode", "padded", "chunked"]
    assert all(0 < case.tolerance < 1e-3 for case in cases)
