"""What the training scripts of the demo models share: checkpoints to go on from, and the record beside the weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a killed run goes on: the state of a model and its optimizers in one file.

    Attributes:
        path: of the file.
        model: what is trained.
        optimizers: of its parameters.
    """

    path: Path
    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]

    def resume(self) -> tuple[int, float]:
        """Take over what was saved, if anything; the next step, and the seconds spent before it."""
        if not self.path.exists():
            return 0, 0.0
        # Only tensors and plain values are read back: weights_only refuses everything else.
        state = torch.load(self.path, weights_only=True)  # noqa: TID251
        self.model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        return state["step"], state["seconds"]

    def save(self, step: int, seconds: float) -> None:
        """Write aside, then rename."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": step,
            "seconds": seconds,
        }
        aside = self.path.with_suffix(".tmp")
        torch.save(state, aside)
        aside.replace(self.path)


def write_record(out: Path, config: "DataclassInstance", seconds: float, metrics: Mapping[str, Any]) -> None:
    """Write `training.json`: what was trained, how long, and how good the weights are as shipped."""
    record = {"train": asdict(config), "seconds": round(seconds), "torch": torch.__version__, "metrics": metrics}
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record), flush=True)
