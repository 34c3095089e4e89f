"""`blockexport select`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockexport.cli.options import parse_numbers, require_file_place
from blockexport.cli.output import Output, counted, progress
from blockexport.cli.verb import JsonFlag, Result, TrustFlag, quiet_libraries, verb
from blockexport.core.jsonio import dump_json, read_json, write_atomically
from blockexport.core.masks import DepthLadder
from blockexport.core.scores import BlockScores
from blockexport.errors import ConfigError

if TYPE_CHECKING:
    from blockexport.models.loaded import LoadedModel

_AUTO = "auto"


@verb
def select(
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="File that `blockexport score` wrote.")],
    depths: Annotated[
        str, typer.Option(help="Counts (12,9,6), fractions (0.75,0.5) or auto: all, 3/4, 1/2 and 1/4 of the blocks.")
    ] = _AUTO,
    strategy: Annotated[str, typer.Option(help="top_k, threshold, sequential, greedy or beam.")] = "top_k",
    out: Annotated[Path, typer.Option(help="Where the ladder goes.")] = Path("ladder.json"),
    task: Annotated[
        str | None, typer.Option(help="Use the scores of this task alone; those of all samples without.")
    ] = None,
    threshold: Annotated[
        str | None, typer.Option(help="For threshold: shares of the highest score, such as 0.5,0.2.")
    ] = None,
    min_depth: Annotated[int, typer.Option(min=1, help="No level keeps fewer blocks.")] = 1,
    num_blocks: Annotated[
        int | None, typer.Option(min=1, help="Blocks of the model, for a score map that leaves out its last ones.")
    ] = None,
    budget_ms: Annotated[
        str | None, typer.Option("--budget-ms", help="With --profile: the deepest level that fits, one per budget.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Bundle of this model, profiled on this host, that says how long a depth takes.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=0, help="With --budget-ms: tokens of the prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=0, help="With --budget-ms: tokens to generate.")] = 32,
    model: Annotated[str | None, typer.Option(help="For greedy and beam: the scored model.")] = None,
    data: Annotated[str | None, typer.Option(help="For greedy and beam: what they measure on.")] = None,
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="For greedy and beam: samples to use; all without.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="For greedy and beam: seed of the draw of the samples.")] = 0,
    beam_width: Annotated[
        int | None, typer.Option(min=1, help="For beam: combinations of each size to go on with; 3 without.")
    ] = None,
    beam_depth: Annotated[
        int | None,
        typer.Option(min=1, help="For beam: removals that a decision looks ahead; to the next level without."),
    ] = None,
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
) -> Result:
    """Choose which blocks stay at each depth: a nested ladder."""
    from blockexport.selection import select as select_blocks

    require_file_place(out)
    importance = BlockScores.from_json(read_json(scores), num_blocks)
    if task is not None:
        importance = importance.of_task(task)
    options: dict[str, Any] = {"strategy": strategy, "min_depth": min_depth}
    options |= {"beam_width": beam_width, "beam_depth": beam_depth}
    options["threshold"] = None if threshold is None else parse_numbers(threshold, "--threshold")
    if budget_ms is not None or profile is not None:
        options["depths"] = _depths_of_budget(importance, depths, budget_ms, profile, prompt_tokens, new_tokens)
    else:
        options["depths"] = _depths(importance, depths, strategy, min_depth)
    with progress() as advance:
        if model is not None:
            loaded = _load(model, trust_remote_code)
            options["model"] = loaded
            source = data or (model if model.startswith("demo:") else None)
            if source is not None:
                options["data"] = _read_data(loaded, source, num_samples, seed)
        ladder = select_blocks(importance, **options, on_progress=counted(advance, "selecting blocks"))
    write_atomically(out, dump_json(ladder.to_json()) + "\n")
    return Result(ladder.to_json(), lambda output: _show(output, ladder, out))


def _depths(scores: BlockScores, text: str, strategy: str, min_depth: int) -> Any:
    from blockexport.pipeline.depths import auto_depths
    from blockexport.selection import parse_depths

    return auto_depths(scores, strategy, min_depth) if text == _AUTO else parse_depths(text)


def _depths_of_budget(
    scores: BlockScores, depths: str, budget_ms: str | None, profile: Path | None, prompt_tokens: int, new_tokens: int
) -> Any:
    if budget_ms is None or profile is None or depths != _AUTO:
        msg = "--budget-ms, --profile and --depths do not fit together; give the first two and leave out --depths"
        raise ConfigError(msg)
    import blockexport
    from blockexport.pipeline.depths import budget_depths
    from blockexport.routing.request import RoutingRequest

    runtime = blockexport.load(profile)
    spec = runtime.spec
    if scores.model not in ("", spec.digest) or scores.num_blocks != spec.num_blocks:
        msg = f"the scores are not of {spec.name}, which is in {profile}; give a bundle of the scored model"
        raise ConfigError(msg)
    generates = spec.kind == "decoder"
    request = RoutingRequest(prompt_tokens if spec.kind != "vision" else 0, new_tokens if generates else 0)
    return budget_depths(runtime.profile.fit, spec.num_blocks, parse_numbers(budget_ms, "--budget-ms"), request)


def _load(model: str, trust_remote_code: bool) -> "LoadedModel":
    quiet_libraries()
    from blockexport.models.loading import load_model

    return load_model(model, trust_remote_code=trust_remote_code)


def _read_data(model: "LoadedModel", source: str, num_samples: int | None, seed: int) -> Any:
    from blockexport.datasets import load_dataset

    dataset = load_dataset(source, model.spec, model.tokenizer_dir)
    return dataset.take(num_samples or len(dataset), seed)


def _show(output: Output, ladder: DepthLadder, out: Path) -> None:
    rows = [(level.name, level.depth, level.kept, level.mask.skipped) for level in ladder.levels]
    output.table(f"Ladder by {ladder.strategy}", ("level", "blocks", "kept", "skipped"), rows)
    for note in ladder.notes:
        output.line(f"note: {note}")
    output.line(f"ladder: {out}")
