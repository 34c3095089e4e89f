"""How quality falls with depth, for every way of choosing blocks, on both demo models.

Not a timing: the figures follow from the models, the data and the seed.
"""

import argparse
from pathlib import Path
from typing import Any

from environment import describe

from blockexport.core.jsonio import dump_json, write_atomically
from blockexport.core.study import Study, StudyRow
from blockexport.datasets import load_dataset
from blockexport.models.loading import load_model
from blockexport.pipeline.study import run_study
from blockexport.report.plots import save_ladder_plot

MODELS = ("demo:code-lm", "demo:digits-vit")
FRACTIONS = (0.75, 0.5, 0.25)


def _study(name: str) -> Study:
    model = load_model(name)
    data = {split: load_dataset(name, model.spec, model.tokenizer_dir, split=split) for split in ("selection", "test")}
    return run_study(model, selection_data=data["selection"], test_data=data["test"], depths=FRACTIONS)


def _cell(row: StudyRow) -> str:
    figures = row.quality.metrics
    parts = []
    for name, metric in figures.items():
        if "/" not in name:
            parts.append(f"{metric.value:.2f}" if name == "bits_per_byte" else f"{100 * metric.value:.1f} %")
    return ", ".join(parts)


def table(study: Study) -> str:
    """A Markdown table of one model: a row for each way of choosing, a column for each depth."""
    full = study.full
    depths = sorted({row.depth for row in study.rows} - {full.depth}, reverse=True)
    metrics = ", ".join(name.replace("_", " ") for name in full.quality.metrics if "/" not in name)
    head = [f"{depth} of {full.depth}" for depth in depths]
    lines = [f"| {metrics} | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    cells: dict[str, dict[int, str]] = {}
    for row in study.rows:
        if row is not full:
            cells.setdefault(row.label, {})[row.depth] = _cell(row)
    lines += [f"| {label} | " + " | ".join(found.get(d, "-") for d in depths) + " |" for label, found in cells.items()]
    return "\n".join([*lines, "", f"Full depth: {_cell(full)}."])


def main() -> None:
    """Run both studies and write the figures as JSON, as Markdown and as a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    studies = {name: _study(name) for name in MODELS}
    result: dict[str, Any] = {
        "question": "how does quality fall with depth, for every way of choosing blocks?",
        "studies": {name: study.to_json() for name, study in studies.items()},
        "environment": describe(),
    }
    text = "\n\n".join(f"### {name}\n\n{table(study)}" for name, study in studies.items()) + "\n"
    write_atomically(args.out / "bench_quality.json", dump_json(result) + "\n")
    write_atomically(args.out / "bench_quality.md", text)
    save_ladder_plot(list(studies.values()), args.out / "bench_quality.png")
    print(text)


if __name__ == "__main__":
    main()
