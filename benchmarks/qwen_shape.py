"""A decoder in the shape of Qwen2.5-0.5B with random weights: what the speed of that model can be measured on.

Writes one checkpoint for each depth, for peers, which know no ladder, and a bundle of all depths for each precision.
Weights come from a seed, so that every call writes the same ones. What is there already is kept.
"""

import argparse
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.core.precision import Precision
from blockexport.pipeline.build import BuildOptions, build

NUM_BLOCKS = 24
# Evenly spread, each depth within the next.
KEPT: dict[int, tuple[int, ...]] = {
    24: tuple(range(NUM_BLOCKS)),
    18: tuple(block for block in range(NUM_BLOCKS) if block % 4 != 3),
    12: tuple(range(0, NUM_BLOCKS, 2)),
    6: tuple(range(0, NUM_BLOCKS, 4)),
}
ROPE_THETA = 1_000_000.0


def make_model(depth: int) -> Qwen2ForCausalLM:
    """The model without the blocks that this depth skips."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=151_643,
        eos_token_id=151_645,
    )
    model = Qwen2ForCausalLM(config).eval()
    model.model.layers = torch.nn.ModuleList(model.model.layers[block] for block in KEPT[depth])
    config.num_hidden_layers = depth
    config.layer_types = config.layer_types[:depth]
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
    return model


def write_checkpoint(folder: Path, depth: int) -> None:
    """A Hugging Face folder, with a tokenizer that only exists because converters ask for one."""
    model = make_model(depth)
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(folder)
    letters = {letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(letters, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=max(letters)).save_pretrained(folder)
    # transformers 4, which some peers bring, knows neither `rope_parameters` nor `dtype`.
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"rope_theta": ROPE_THETA, "torch_dtype": "float32"}, indent=2))


def write_bundle(folder: Path, precision: str) -> None:
    """A bundle of all depths that share one weight file."""
    ladder = DepthLadder.from_masks([DepthMask.from_kept(kept, NUM_BLOCKS) for kept in KEPT.values()])
    build(make_model(NUM_BLOCKS), ladder, out=folder, options=BuildOptions(precision=Precision.parse(precision)))


def make_once(path: Path, make: Callable[[Path], None]) -> Path:
    """Have `make` write a folder aside and rename it, unless it is there."""
    if not path.exists():
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            make(aside)
            aside.rename(path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return path


def main() -> None:
    """Parse the command line and write what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="gets d24/, d12/ ... and bundle-int4/ ...")
    parser.add_argument("--depths", type=int, nargs="*", choices=KEPT, default=[], help="depths of checkpoints")
    parser.add_argument("--precisions", nargs="*", default=[], help="precisions of bundles, such as fp32 int8 int4g32")
    args = parser.parse_args()
    for depth in args.depths:
        print(make_once(args.out / f"d{depth}", partial(write_checkpoint, depth=depth)))
    for precision in args.precisions:
        print(make_once(args.out / f"bundle-{precision}", partial(write_bundle, precision=precision)))


if __name__ == "__main__":
    main()
