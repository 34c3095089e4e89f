"""`blockexport study`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockexport.cli.options import parse_blocks, require_file_place
from blockexport.cli.output import Output, progress, quality_text
from blockexport.cli.verb import JsonFlag, Result, TrustFlag, quiet_libraries, verb
from blockexport.core.jsonio import dump_json, write_atomically
from blockexport.errors import DataError

if TYPE_CHECKING:
    from blockexport.core.study import Study


@verb
def study(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model folder, or demo:code-lm, demo:digits-molmo, demo:digits-vit.")
    ],
    data: Annotated[str | None, typer.Option(help="What blocks are chosen on; a demo model has its own.")] = None,
    test_data: Annotated[
        str | None, typer.Option(help="What quality is measured on; a demo model has its own.")
    ] = None,
    depths: Annotated[str, typer.Option(help="Counts (9,6) or fractions, beside the full model.")] = "0.75,0.5,0.25",
    protect: Annotated[str, typer.Option(help="Blocks that must stay, such as 0,11.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw of the samples.")] = 66,
    beam_width: Annotated[
        int | None, typer.Option(min=1, help="Search by beam too, with so many combinations of each size; slow.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the study goes; `build --study` puts it into a bundle.")] = Path(
        "study.json"
    ),
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
) -> Result:
    """Compare the ways of choosing blocks.

    Every strategy at several depths, by what it costs in quality.
    """
    quiet_libraries()
    require_file_place(out)
    from blockexport.selection import parse_depths

    options: dict[str, Any] = {
        "depths": parse_depths(depths),
        "protected": parse_blocks(protect, "--protect"),
        "seed": seed,
        "beam_width": beam_width,
    }
    with progress() as advance:
        advance("loading the model", 0.0)
        from blockexport.datasets import load_dataset
        from blockexport.models.loading import load_model
        from blockexport.pipeline.study import run_study

        loaded = load_model(model, trust_remote_code=trust_remote_code)
        own = model if model.startswith("demo:") else None
        chosen, judged = data or own, test_data or own
        if chosen is None or judged is None:
            msg = f"no data to study {model} on; give --data to choose blocks on and --test-data to judge them on"
            raise DataError(msg)
        found = run_study(
            loaded,
            selection_data=load_dataset(chosen, loaded.spec, loaded.tokenizer_dir),
            test_data=load_dataset(judged, loaded.spec, loaded.tokenizer_dir, split="test"),
            on_stage=advance,
            **options,
        )
    write_atomically(out, dump_json(found.to_json()) + "\n")
    return Result(found.to_json(), lambda output: _show(output, found, out))


def _show(output: Output, found: "Study", out: Path) -> None:
    rows = [(row.label, row.depth, quality_text(row.quality.to_json()), row.kept) for row in found.rows]
    title = f"{found.model}, judged on {found.test_data.num_samples} samples of {found.test_data.name}"
    output.table(title, ("choice", "blocks", "quality", "kept"), rows)
    output.line(f"study: {out}")
