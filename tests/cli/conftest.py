"""One tiny decoder, taken through score, select and build by the command line itself; every test here reads it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

NUM_BLOCKS = 4


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def value(self) -> Any:
        """The one JSON document."""
        return json.loads(self.out)


Cli = Callable[..., Finished]


@dataclass(frozen=True)
class Workspace:
    """What the commands made, and what they printed."""

    folder: Path
    score: Finished
    select: Finished
    build: Finished

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def data(self) -> Path:
        return self.folder / "data.jsonl"

    @property
    def scores(self) -> Path:
        return self.folder / "scores.json"

    @property
    def ladder(self) -> Path:
        return self.folder / "ladder.json"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"


def run_cli(*arguments: object) -> Finished:
    from blockexport.cli.app import app

    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return Finished(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="session")
def cli() -> Cli:
    return run_cli


def write_model(folder: Path) -> None:
    """A checkpoint folder as a user has one: configuration, weights, tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from blockexport.testing.tiny_models import VOCAB_SIZE, tiny_model

    tiny_model("llama", NUM_BLOCKS).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB_SIZE)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def write_data(path: Path) -> None:
    """A few texts of random words."""
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(1, 97, 20)) for _ in range(6)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("cli")
    write_model(folder / "model")
    write_data(folder / "data.jsonl")
    model, scores, ladder = folder / "model", folder / "scores.json", folder / "ladder.json"
    scored = run_cli(
        "score", model, "--data", folder / "data.jsonl", "--method", "loss_drop", "--out", scores, "--json"
    )
    selected = run_cli("select", scores, "--depths", "4,3,2", "--out", ladder, "--json")
    options = ["--data", folder / "data.jsonl", "--scores", scores, "--no-cache", "--json"]
    built = run_cli(
        "build", model, "--ladder", ladder, "--backend", "onnxruntime", "--out", folder / "bundle", *options
    )
    return Workspace(folder, scored, selected, built)


@pytest.fixture(scope="session")
def profiled(workspace: Workspace) -> Finished:
    """The bundle, measured on this host."""
    return run_cli("profile", workspace.bundle, "--quick", "--time-limit", "3", "--json")
