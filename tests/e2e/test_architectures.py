"""Every architecture that is said to be supported, from a checkpoint folder to answers, held to transformers' own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import blockexport as bx
from blockexport.models.loaded import LoadedModel
from blockexport.pipeline.build import BuildOptions
from blockexport.runtime import Runtime
from blockexport.runtime.verify import verify_bundle
from blockexport.testing.tiny_data import tiny_dataset
from blockexport.testing.tiny_models import ARCHITECTURES, VOCAB_SIZE, tiny_inputs, tiny_model

NUM_BLOCKS = 3
NEW_TOKENS = 6
# fp32 rounding shows as some 2e-6 here, a wrong mask, window or position as 1e-2.
TOLERANCE = 2e-5
SLIDING, FULL = "sliding_attention", "full_attention"

# What configurations of one architecture differ in. The windows of the plain ones hold 5 tokens, prompts 3 to 11.
VARIANTS: dict[str, dict[str, Any]] = {
    "qwen2": {"use_sliding_window": True, "sliding_window": 3, "layer_types": [FULL, SLIDING, FULL]},
    "mistral": {"sliding_window": 40},
    "gemma2": {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.7, "layer_types": [FULL, SLIDING, SLIDING]},
    "gemma3": {"layer_types": [FULL, SLIDING, FULL], "sliding_window": 4},
    "opt": {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "llama": {"tie_word_embeddings": True, "attention_bias": True, "num_key_value_heads": 1},
}
CASES = [*((name, {}) for name in ARCHITECTURES), *VARIANTS.items()]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("architecture", "settings"), CASES, ids=[f"{name}{'*' if more else ''}" for name, more in CASES]
)
def test_from_a_checkpoint_to_answers(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    tiny_model(architecture, NUM_BLOCKS, **settings).save_pretrained(tmp_path / "model")
    model = bx.load_model(tmp_path / "model")
    data = tiny_dataset(model.spec.kind, 4)
    method = "block_influence" if model.spec.kind == "encoder" else "loss_drop"
    ladder = bx.select(bx.score(model, method=method, data=data), depths=[3, 2, 1])
    bx.build(model, ladder, out=tmp_path / "bundle", options=BuildOptions(data=data))

    checks = verify_bundle(tmp_path / "bundle")
    # Without a compiler our own operators cannot be proved, and that is said.
    assert {check.status for check in checks if check.id != "parity:native"} == {"ok"}
    num_cases = 4 if model.spec.kind == "decoder" else 1
    stock = [check.id for check in checks if ":native" not in check.id]
    assert sum(name.startswith("parity:") for name in stock) == len(ladder.levels) * num_cases
    assert sum(check.id.startswith("audit:") for check in checks) == 2 * len(ladder.levels)
    native = {check.id.split(":")[1] for check in checks if check.id.startswith("parity:") and ":native:" in check.id}
    assert native in (set(), {level.name for level in ladder.levels})

    runtime = bx.load(tmp_path / "bundle")
    for level in ladder.levels:
        with bx.masked(model, level.mask):
            if model.spec.kind == "decoder":
                check_generation(runtime, level.name, model)
            else:
                check_single_pass(runtime, level.name, model)


def check_generation(runtime: Runtime, level: str, model: LoadedModel) -> None:
    """Greedy tokens and logits of batches padded on the left and on the right, and of one row alone."""
    for lengths in ([11, 6, 3], [3]):
        tokens, left = left_padded(lengths)
        wanted = generate_with_transformers(model, tokens, left)
        found = runtime.generate(tokens, NEW_TOKENS, level=level, attention_mask=left, stop_tokens=())
        assert found.tokens == wanted
        right = left[:, ::-1]
        shifted = np.stack([np.roll(row, int(mask.sum())) for row, mask in zip(tokens, left, strict=True)])
        again = runtime.generate(shifted, NEW_TOKENS, level=level, attention_mask=right, stop_tokens=())
        assert again.tokens == wanted
        logits = runtime.forward(tokens, level=level, attention_mask=left)
        for row, length in enumerate(lengths):
            with torch.no_grad():
                alone = model(input_ids=torch.from_numpy(tokens[row : row + 1, -length:]), use_cache=False).logits
            assert logits[row, -length:] == pytest.approx(alone[0].numpy(), abs=TOLERANCE)


def left_padded(lengths: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    width = max(lengths)
    tokens = np.random.default_rng(0).integers(1, VOCAB_SIZE, (len(lengths), width))
    mask = (np.arange(width) >= width - np.array(lengths)[:, None]).astype(np.int64)
    return tokens, mask


def generate_with_transformers(
    model: LoadedModel, tokens: NDArray[np.int64], mask: NDArray[np.int64]
) -> list[list[int]]:
    module: Any = model.module
    output = module.generate(
        torch.from_numpy(tokens),
        attention_mask=torch.from_numpy(mask),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    rows: list[list[int]] = output[:, tokens.shape[1] :].tolist()
    return rows


def check_single_pass(runtime: Runtime, level: str, model: LoadedModel) -> None:
    module: Any = model.module
    inputs = tiny_inputs(module, batch_size=3)
    with torch.no_grad():
        wanted = getattr(model(**inputs), model.spec.output).numpy()
    found = runtime.forward({name: tensor.numpy() for name, tensor in inputs.items()}, level=level)
    difference = np.abs(found - wanted)
    if "attention_mask" in inputs:
        difference = difference[inputs["attention_mask"].numpy() != 0]
    assert difference.size
    assert difference.max() < TOLERANCE
