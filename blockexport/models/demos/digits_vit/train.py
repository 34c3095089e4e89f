"""Train `demo:digits-vit`: `python -m blockexport.models.demos.digits_vit.train --out FOLDER`."""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from blockexport.models.demos.digits_vit import data
from blockexport.models.demos.training import write_record


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that decides the weights."""

    seed: int = 66
    epochs: int = 120
    batch_size: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup_epochs: int = 5
    max_rotation: float = 0.2
    max_scale: float = 0.12
    max_shift: float = 0.15


def model_config() -> ViTConfig:
    """ViT with 12 blocks, hidden 48, patches of 2 x 2 pixels."""
    return ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=48,
        num_hidden_layers=12,
        num_attention_heads=4,
        intermediate_size=96,
        num_labels=10,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _augment(pixels: torch.Tensor, config: TrainConfig, generator: torch.Generator) -> torch.Tensor:
    """Rotate, scale and shift each picture of (batch, 1, 8, 8) by its own random affine map."""

    def uniform(bound: float) -> torch.Tensor:
        return (torch.rand(len(pixels), generator=generator) * 2 - 1) * bound

    angle, scale = uniform(config.max_rotation), 1 + uniform(config.max_scale)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [
        torch.stack([cos, -sin, uniform(config.max_shift)], dim=-1),
        torch.stack([sin, cos, uniform(config.max_shift)], dim=-1),
    ]
    grid = nn.functional.affine_grid(torch.stack(rows, dim=1), list(pixels.shape), align_corners=False)
    # grid_sample pads with 0, which is mid-grey here; shifting by one makes the padding the background.
    return nn.functional.grid_sample(pixels + 1, grid, align_corners=False) - 1


def accuracy(model: nn.Module, split: data.Split) -> float:
    """Share of the pictures of a split whose most likely label is right."""
    pixels, labels = data.read_split(split)
    with torch.no_grad():
        predicted = model(pixel_values=torch.from_numpy(pixels)).logits.argmax(-1).numpy()
    return float((predicted == labels).mean())


def train(config: TrainConfig, out: Path) -> None:
    """Train from scratch and write weights, configuration and metrics into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    pixels, labels = (torch.from_numpy(array) for array in data.read_split("train"))
    model = ViTForImageClassification(model_config()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    steps_per_epoch = len(labels) // config.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=config.lr,
        total_steps=config.epochs * steps_per_epoch,
        pct_start=config.warmup_epochs / config.epochs,
    )
    started = time.perf_counter()
    for epoch in range(config.epochs):
        order = torch.randperm(len(labels), generator=generator)
        for batch in order[: steps_per_epoch * config.batch_size].split(config.batch_size):
            logits = model(pixel_values=_augment(pixels[batch], config, generator)).logits
            nn.functional.cross_entropy(logits, labels[batch], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        if (epoch + 1) % 20 == 0:
            model.eval()
            print(json.dumps({"epoch": epoch + 1, "selection": accuracy(model, "selection")}), flush=True)
            model.train()
    _save_release(out, model, config, time.perf_counter() - started)


def _save_release(out: Path, model: ViTForImageClassification, config: TrainConfig, seconds: float) -> None:
    weights = {name: tensor.to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    # The figures are those of the weights as shipped, rounded to half precision.
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    model.eval()
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = ["ViTForImageClassification"]
    model.config.dtype = "float16"
    model.config.save_pretrained(out)
    metrics = {f"{split}_accuracy": accuracy(model, split) for split in ("selection", "test")}
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
