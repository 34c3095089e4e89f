"""A killed training goes on where its last checkpoint was."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from blockexport.models.demos.training import Checkpoint, write_record


def _trained(path: Path, seed: int) -> tuple[Checkpoint, nn.Linear]:
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    return Checkpoint(path, model, [torch.optim.AdamW(model.parameters(), lr=0.1)]), model


def _step(checkpoint: Checkpoint, model: nn.Linear) -> None:
    model(torch.ones(1, 3)).sum().backward()
    for optimizer in checkpoint.optimizers:
        optimizer.step()
        optimizer.zero_grad()


def test_a_run_goes_on_as_if_it_had_not_been_killed(tmp_path: Path) -> None:
    checkpoint, model = _trained(tmp_path / "checkpoint.pt", seed=0)
    assert checkpoint.resume() == (0, 0.0)
    _step(checkpoint, model)
    checkpoint.save(1, 2.5)
    _step(checkpoint, model)
    again, other = _trained(tmp_path / "checkpoint.pt", seed=1)
    assert again.resume() == (1, 2.5)
    _step(again, other)
    assert torch.equal(other.weight, model.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_the_record_says_what_was_trained(tmp_path: Path) -> None:
    @dataclass
    class Config:
        seed: int = 3

    write_record(tmp_path, Config(), 12.4, {"accuracy": 0.5})
    record = json.loads((tmp_path / "training.json").read_text())
    assert (record["train"], record["seconds"], record["metrics"]) == ({"seed": 3}, 12, {"accuracy": 0.5})
