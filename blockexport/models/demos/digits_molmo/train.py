"""Train `demo:digits-molmo`: `python -m blockexport.models.demos.digits_molmo.train --out FOLDER`.

The vision side learns to show digits first, through a head that is thrown away, as Molmo starts from a trained vision
tower; then all is trained together, on answers only. From then on every block of the text stack is left out of a step
with a probability that rises with its depth (as in LayerSkip, arXiv:2404.16710), so that the model does not lean on any
one of them. Matrices of those blocks use Muon (https://kellerjordan.github.io/posts/muon/), all else AdamW. A killed
run goes on from its last checkpoint.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from blockexport.models.demos.digits_molmo.batches import PackedBatches
from blockexport.models.demos.digits_molmo.data import SceneSource
from blockexport.models.demos.digits_molmo.evaluate import answers, exact_match
from blockexport.models.demos.digits_molmo.losses import answer_loss, attend_in_float32, encode_pictures, sight_loss
from blockexport.models.demos.digits_molmo.recipe import GEOMETRY, model_entries, write_processor
from blockexport.models.demos.digits_molmo.tokenizer import PICTURE_TOKENS
from blockexport.models.demos.digits_vit.data import Split
from blockexport.models.demos.training import Checkpoint, write_record
from blockexport.models.loading import load_model
from blockexport.models.molmo.config import MolmoConfig
from blockexport.models.molmo.model import MolmoForCausalLM
from blockexport.processing.processor import MolmoProcessor

_ATTENTION = "sdpa_float32"
_NUM_DIGITS = 10


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that decides the weights."""

    seed: int = 66
    sight_steps: int = 1200
    num_steps: int = 2400
    horizon_steps: int = 2400
    cooldown_steps: int = 120
    crops_per_step: int = 128
    pictures_per_step: int = 32
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    warmup_steps: int = 60
    sight_weight: float = 0.3
    late_from: int = 1500
    late_sum_weight: float = 4.0
    max_skip_rate: float = 0.2
    checkpoint_every: int = 100


class Trainee(nn.Module):
    """The model, and the head through which its vision side learns to see."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.model = MolmoForCausalLM(MolmoConfig(published=model_entries(vocab_size)))
        self.model.set_attn_implementation(_ATTENTION)
        # The usual spread is meant for wide layers: at this width a signal would vanish on its way through the tower.
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear) and name.startswith("image_encoder"):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        self.digit_head = nn.Linear(self.model.config.text_config.hidden_size, _NUM_DIGITS)


@contextmanager
def _skipping(model: MolmoForCausalLM, step: int, config: TrainConfig) -> Iterator[None]:
    """Leave blocks out at random for one step; the rate is reached a third of the way to the horizon."""
    blocks = model.language_model.layers
    rates = np.linspace(0, config.max_skip_rate * min(1.0, 3 * _progress(step, config)), len(blocks))
    drawn = np.random.default_rng([config.seed, step]).random(len(blocks))
    model.language_model.layers = nn.ModuleList(b for b, out in zip(blocks, drawn < rates, strict=True) if not out)
    try:
        yield
    finally:
        model.language_model.layers = blocks


def _optimizers(trainee: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    def is_matrix(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim == 2 and "language_model.layers" in name

    named = list(trainee.named_parameters())
    matrices = [parameter for name, parameter in named if is_matrix(name, parameter)]
    others = [parameter for name, parameter in named if not is_matrix(name, parameter)]
    return [
        torch.optim.Muon(matrices, lr=config.muon_lr, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=config.adam_lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _progress(step: int, config: TrainConfig) -> float:
    """How far the second part is on its way to the horizon, which lies behind its end."""
    return max(0, step - config.sight_steps) / (config.horizon_steps - config.sight_steps)


def _lr_factor(step: int, config: TrainConfig) -> float:
    """Each part warms up; in the second the rate falls slowly, and at its end quickly to zero."""
    since = step if step < config.sight_steps else step - config.sight_steps
    warmed, cooled = (since + 1) / config.warmup_steps, (config.num_steps - step) / config.cooldown_steps
    return min(1.0, warmed) * min(1.0, cooled) * (1.0 - _progress(step, config))


def _sight(trainee: Trainee, batches: PackedBatches, source: SceneSource, config: TrainConfig) -> torch.Tensor:
    """Loss of one step of the first part: single digits, each in a picture of the size of a crop."""
    size = (GEOMETRY.crop_size, GEOMETRY.crop_size)
    inputs, digits = batches.crops([source.draw((1,), size) for _ in range(config.crops_per_step)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encode_pictures(trainee.model, inputs["images"], inputs["image_masks"])
        shown = nn.functional.one_hot(digits, _NUM_DIGITS).float()
        return sight_loss(trainee.digit_head, features, inputs["image_input_idx"], shown)


def _answers(
    trainee: Trainee, batches: PackedBatches, source: SceneSource, step: int, config: TrainConfig
) -> torch.Tensor:
    """Loss of one step of the second part: every question that can be put to each picture."""
    scenes = [source.draw() for _ in range(config.pictures_per_step)]
    # Once digits are read, sums are what is left to learn.
    emphasis = {"sum": config.late_sum_weight} if step >= config.late_from else {}
    inputs, labels, weights = batches.pack(scenes, emphasis)
    counts = np.stack([np.bincount(scene.digits, minlength=_NUM_DIGITS) for scene in scenes]).astype(np.float32)
    shown = torch.from_numpy(counts / counts.sum(-1, keepdims=True))
    with torch.autocast("cpu", dtype=torch.bfloat16), _skipping(trainee.model, step, config):
        features = encode_pictures(trainee.model, inputs["images"], inputs["image_masks"])
        sight = sight_loss(trainee.digit_head, features, inputs["image_input_idx"], shown)
        return answer_loss(trainee.model, inputs, features, labels, weights) + config.sight_weight * sight


def train(config: TrainConfig, out: Path) -> None:
    """Train from scratch (or from the last checkpoint in `out`) and write weights, processor and metrics."""
    processor = write_processor(out)
    ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, attend_in_float32)
    torch.manual_seed(config.seed)
    trainee = Trainee(processor.tokenizer.get_vocab_size() - len(PICTURE_TOKENS)).train()
    optimizers = _optimizers(trainee, config)
    base_lrs = [config.muon_lr, config.adam_lr]
    batches, validation = PackedBatches(processor), answers("selection", 50, processor)
    checkpoint = Checkpoint(out / "checkpoint.pt", trainee, optimizers)
    first_step, seconds = checkpoint.resume()
    for step in range(first_step, config.num_steps):
        started = time.perf_counter()
        source = SceneSource("train", config.seed * 1_000_000 + step, vary=True)
        for optimizer, base_lr in zip(optimizers, base_lrs, strict=True):
            optimizer.param_groups[0]["lr"] = base_lr * _lr_factor(step, config)
        if step < config.sight_steps:
            loss = _sight(trainee, batches, source, config)
        else:
            loss = _answers(trainee, batches, source, step, config)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds += time.perf_counter() - started
        if (step + 1) % config.checkpoint_every == 0:
            metrics = exact_match(trainee.model, validation) if step >= config.sight_steps else {}
            print(json.dumps({"step": step + 1, "loss": loss.item(), "seconds": round(seconds), **metrics}), flush=True)
            checkpoint.save(step + 1, seconds)
    _save_release(out, trainee.model, processor, config, seconds)


def _save_release(
    out: Path, model: MolmoForCausalLM, processor: MolmoProcessor, config: TrainConfig, seconds: float
) -> None:
    model.half().save_pretrained(out)
    # The figures are those of the weights as shipped, rounded to half precision.
    released = load_model(out).module
    splits: dict[str, Split] = {"validation": "selection", "held_out": "test"}
    metrics = {name: exact_match(released, answers(split, 300, processor)) for name, split in splits.items()}
    write_record(out, config, seconds, metrics)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(TrainConfig(), args.out)


if __name__ == "__main__":
    main()
