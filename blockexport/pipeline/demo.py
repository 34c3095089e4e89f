"""The whole job on the shipped decoder: scored, cut, exported, proved, profiled, and answering under a budget."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockexport.bundle.reader import Bundle
from blockexport.core.jsonio import dump_json
from blockexport.core.latency import LatencyBudget, LatencyProfile
from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.core.study import Study
from blockexport.datasets import load_dataset
from blockexport.errors import BudgetInfeasibleError
from blockexport.models.loaded import LoadedModel
from blockexport.models.loading import load_model
from blockexport.pipeline.build import BuildOptions, Stage, build
from blockexport.pipeline.study import run_study
from blockexport.runtime import Runtime, load, profile

MODEL = "demo:code-lm"
_PROMPTS = ("# copy: k v a q ->", "# lookup: k=4 v=7 a=1 q=9; a ->", "# add: 37 + 48 ->", "def __init__(self, ")
_NEW_TOKENS = 16
# Budgets as multiples of what the deepest level needs: roomy, tight, and tighter than anything can be.
_BUDGET_SHARES = (2.0, 0.8, 0.6, 0.01)


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo made.

    Attributes:
        bundle: the built and verified bundle.
        levels: per level: name, depth, kept blocks, quality, latency and speed against the deepest.
        answers: per prompt and budget: the level chosen, the text, predicted and observed milliseconds.
    """

    bundle: Bundle
    levels: list[dict[str, Any]]
    answers: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The result as the command prints it, but for the report."""
        return {"levels": self.levels, "bundle": str(self.bundle.folder), "answers": self.answers}


def run_demo(out: Path, on_stage: Stage) -> DemoResult:
    """Run the demo.

    Args:
        out: folder for the bundle; the caller puts the report beside it.
        on_stage: told what begins and how far the demo is.
    """
    on_stage("loading the model", 0.0)
    model = load_model(MODEL)
    study = _study(model, _part(on_stage, 0.02, 0.55))
    bundle = _build(model, study, out / "bundle", _part(on_stage, 0.55, 0.85))
    on_stage("measuring latency on this host", 0.85)
    runtime = load(bundle.folder)
    # Every level is open after this, so that no answer below pays for opening one.
    measured = profile(runtime, quick=True)
    on_stage("answering prompts under latency budgets", 0.97)
    return DemoResult(bundle, _levels(runtime, measured), _answers(runtime))


def _part(on_stage: Stage, begin: float, end: float) -> Stage:
    return lambda what, share: on_stage(what, begin + share * (end - begin))


def _study(model: LoadedModel, on_stage: Callable[[str, float], None]) -> Study:
    data = {split: load_dataset(MODEL, model.spec, model.tokenizer_dir, split=split) for split in ("selection", "test")}
    return run_study(model, selection_data=data["selection"], test_data=data["test"], on_stage=on_stage)


def _build(model: LoadedModel, study: Study, out: Path, on_stage: Stage) -> Bundle:
    masks = [DepthMask.from_kept(row.kept, model.num_blocks) for row in study.rows if row.strategy == "greedy"]
    ladder = DepthLadder.from_masks([DepthMask.full(model.num_blocks), *masks], strategy="greedy")
    attachments = {"study.json": dump_json(study.to_json()).encode()}
    return build(model, ladder, out=out, options=BuildOptions(attachments=attachments), on_stage=on_stage)


def _levels(runtime: Runtime, measured: LatencyProfile) -> list[dict[str, Any]]:
    summary = {row["name"]: row for row in measured.level_summary()}
    deepest = summary[runtime.levels[0].name]["decode_ms"]
    return [
        {
            "name": level.name,
            "depth": level.depth,
            "kept": list(level.kept),
            "quality": level.quality.to_json() if level.quality else {},
            "prefill_ms": summary[level.name]["prefill_ms"],
            "decode_ms": summary[level.name]["decode_ms"],
            "speedup": deepest / summary[level.name]["decode_ms"],
        }
        for level in runtime.levels
    ]


def _answers(runtime: Runtime) -> list[dict[str, Any]]:
    newline = runtime.tokenizer.encode("\n").ids
    return [
        _answer(runtime, prompt, share, newline if prompt.startswith("#") else None)
        for prompt, share in zip(_PROMPTS, _BUDGET_SHARES, strict=True)
    ]


def _answer(runtime: Runtime, prompt: str, share: float, stop_tokens: list[int] | None) -> dict[str, Any]:
    tokens = runtime.tokenizer.encode(prompt).ids
    unbounded = runtime.plan(prompt_tokens=len(tokens), new_tokens=_NEW_TOKENS)
    budget_ms = unbounded.bound_ms * share
    answer: dict[str, Any] = {"prompt": prompt, "budget_ms": budget_ms}
    try:
        result = runtime.generate(tokens, _NEW_TOKENS, budget=LatencyBudget(e2e_ms=budget_ms), stop_tokens=stop_tokens)
    except BudgetInfeasibleError as error:
        return answer | {"level": None, "text": None, "why": str(error), "fastest_ms": error.fastest_ms}
    assert result.decision is not None
    return answer | {
        "level": result.level,
        "text": runtime.tokenizer.decode(result.tokens),
        "predicted_ms": result.decision.predicted_ms,
        "observed_ms": result.observed_ms,
    }
