"""`blockexport score`."""

from pathlib import Path
from typing import Annotated

import typer

from blockexport.cli.options import parse_blocks, require_file_place
from blockexport.cli.output import Output, cell, counted, progress
from blockexport.cli.verb import JsonFlag, Result, TrustFlag, quiet_libraries, verb
from blockexport.core.jsonio import dump_json, write_atomically
from blockexport.core.scores import BlockScores
from blockexport.errors import DataError


@verb
def score(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model folder, or demo:code-lm, demo:digits-molmo, demo:digits-vit.")
    ],
    method: Annotated[
        str,
        typer.Option(help="accuracy_drop, loss_drop, activation, gradient, attention or block_influence."),
    ] = "accuracy_drop",
    data: Annotated[
        str | None, typer.Option(help="demo:NAME, or a .txt, .py, .jsonl or .npz file; a demo model has its own.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the scores go.")] = Path("scores.json"),
    protect: Annotated[str, typer.Option(help="Blocks that must stay, such as 0,11.")] = "",
    num_samples: Annotated[int | None, typer.Option(min=1, help="Samples to use; all without.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw of the samples.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 8,
    vision: Annotated[
        bool, typer.Option("--vision", help="Score the blocks of the vision side, for build --vision-ladder.")
    ] = False,
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
) -> Result:
    """Measure how much a model needs each of its blocks. A killed run goes on where it was."""
    quiet_libraries()
    require_file_place(out)
    protected = parse_blocks(protect, "--protect")
    with progress() as advance:
        advance("loading the model", 0.0)
        from blockexport.datasets import load_dataset
        from blockexport.models.loading import load_model
        from blockexport.scoring import score as score_blocks

        loaded = load_model(model, trust_remote_code=trust_remote_code)
        source = data or (model if model.startswith("demo:") else None)
        if source is None:
            msg = f"no data to score {model} on; give --data with a file of text, questions or pictures"
            raise DataError(msg)
        scores = score_blocks(
            loaded,
            method=method,
            data=load_dataset(source, loaded.spec, loaded.tokenizer_dir),
            protected=protected,
            seed=seed,
            num_samples=num_samples,
            batch_size=batch_size,
            vision=vision,
            resume_path=out.with_name(f"{out.name}.unfinished"),
            on_progress=counted(advance, f"scoring by {method}"),
        )
    write_atomically(out, dump_json(scores.to_json()) + "\n")
    return Result(scores.to_json(), lambda output: _show(output, scores, out))


def _show(output: Output, scores: BlockScores, out: Path) -> None:
    columns = [scores.scores, scores.stderr, *(task.scores for task in scores.tasks)]
    rows = [
        (block, *(["protected"] * len(columns) if block in scores.protected else values))
        for block, values in enumerate(zip(*columns, strict=True))
    ]
    title = f"Importance by {scores.method}, {scores.num_samples} samples"
    tasks = [f"{task.name} ({task.num_samples})" for task in scores.tasks]
    output.table(title, ("block", "score", "standard error", *tasks), rows)
    _show_agreement(output, scores)
    output.line(f"scores: {out}")


def _show_agreement(output: Output, scores: BlockScores) -> None:
    """What it is worth to have scored on these samples and tasks and no others."""
    agreement = scores.agreement
    if agreement.tasks:
        rows = [
            (name, found.halves, found.merged, *(found.others.get(other) for other in agreement.tasks))
            for name, found in agreement.tasks.items()
        ]
        head = ("task", "its two halves", "all samples", *agreement.tasks)
        output.table("Spearman rank correlation of scores", head, rows)
    if scores.halves:
        output.line(f"Spearman between the two halves of all samples: {cell(agreement.halves)}")
