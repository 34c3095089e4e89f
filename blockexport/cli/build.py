"""`blockexport build`: a model and a ladder, or a recipe, to a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockexport.cli.output import Output, progress, quality_text
from blockexport.cli.verb import JsonFlag, Result, TrustFlag, quiet_libraries, verb
from blockexport.core.jsonio import dump_json, read_json
from blockexport.core.masks import DepthLadder
from blockexport.core.precision import Precision
from blockexport.core.scores import BlockScores
from blockexport.errors import ConfigError, ScoresError

if TYPE_CHECKING:
    from blockexport.models.loaded import LoadedModel
    from blockexport.pipeline.summary import BuildReport

_RECIPE_SUFFIX = ".toml"
_ONLY_WITHOUT_RECIPE = (
    "--ladder, --vision-ladder, --backend, --device, --data, --scores, --study, --precision, --min-quality, "
    "--max-build-seconds, --trust-remote-code"
)


@verb
def build(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model folder, demo:NAME, or a recipe.toml.")],
    ladder: Annotated[Path | None, typer.Option(help="File that `blockexport select` wrote.")] = None,
    vision_ladder: Annotated[
        Path | None, typer.Option(help="Levels of the vision side of a model that reads pictures, as a ladder file.")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Who will run the engines: onnxruntime, always, and aotinductor; repeatable."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="What aotinductor compiles for: cpu or cuda.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the bundle goes; a recipe names its own place.")] = None,
    data: Annotated[str | None, typer.Option(help="What quality is measured on; a demo model has its own.")] = None,
    scores: Annotated[Path | None, typer.Option(help="Scores to keep in the bundle, for its report.")] = None,
    study: Annotated[Path | None, typer.Option(help="Study to keep in the bundle, for its report.")] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LEVEL=]PRECISION",
            help="What holds the weights: fp32, bf16, int8, int4; int4g32 sets a block size, int4g32a is asymmetric.",
        ),
    ] = None,
    min_quality: Annotated[
        list[str] | None, typer.Option(metavar="METRIC=VALUE", help="What every level must reach; repeatable.")
    ] = None,
    max_build_seconds: Annotated[float | None, typer.Option(help="What the build may take.")] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Where scores and traces are kept between builds.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep scores and traces.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build a recipe even if nothing has changed.")] = False,
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
) -> Result:
    """Build the engines of every level and prove them.

    A failed gate leaves no new bundle and exits 3. Beside the bundle go BUNDLE.summary.md and BUNDLE.junit.xml for
    CI, also when a gate fails.
    """
    quiet_libraries()
    from blockexport.pipeline.cache import open_cache
    from blockexport.pipeline.precisions import parse_precisions

    cache_folder = None if no_cache else open_cache(cache_dir)
    if model.endswith(_RECIPE_SUFFIX):
        given = (
            ladder,
            vision_ladder,
            backend,
            device,
            data,
            scores,
            study,
            precision,
            min_quality,
            max_build_seconds,
            trust_remote_code or None,
        )
        report = _run_recipe(Path(model), given, out, cache_folder, force=force)
    else:
        loaded, levels = _load(model, ladder, trust_remote_code)
        settings = {
            "data": data,
            "gates": _gates(min_quality, max_build_seconds),
            "precision": parse_precisions(precision or ["fp32"]),
            "vision_ladder": None if vision_ladder is None else DepthLadder.from_json(read_json(vision_ladder)),
            "cache_folder": cache_folder,
            "attachments": _attachments(loaded, scores, study),
        }
        if device is not None:
            settings["device"] = device
        report = _build(loaded, levels, backend, _require_out(out), settings)
    value = _describe(report)
    return Result(value, lambda output: _show(output, value))


def _run_recipe(
    path: Path, given: tuple[Any, ...], out: Path | None, cache_folder: Path | None, *, force: bool
) -> "BuildReport":
    if any(value is not None and value != [] for value in given):
        msg = f"a recipe says all that {_ONLY_WITHOUT_RECIPE} say; write it into {path} and leave the options out"
        raise ConfigError(msg)
    from blockexport.pipeline.recipe import RecipeOptions, run_recipe

    with progress() as advance:
        return run_recipe(path, RecipeOptions(out, cache_folder, force, advance))


def _load(model: str, ladder: Path | None, trust_remote_code: bool) -> "tuple[LoadedModel, DepthLadder]":
    if ladder is None:
        msg = f"no ladder for {model}; give --ladder with the file of `blockexport select`, or a recipe.toml instead"
        raise ConfigError(msg)
    levels = DepthLadder.from_json(read_json(ladder))
    from blockexport.models.loading import load_model

    return load_model(model, trust_remote_code=trust_remote_code), levels


def _require_out(out: Path | None) -> Path:
    if out is None:
        msg = "no place for the bundle; give --out"
        raise ConfigError(msg)
    return out


def _gates(min_quality: list[str] | None, max_build_seconds: float | None) -> Any:
    from blockexport.pipeline.gates import Gates

    bounds = {}
    for entry in min_quality or ():
        name, _, number = entry.partition("=")
        try:
            bounds[name] = float(number)
        except ValueError as error:
            msg = f"--min-quality is {entry!r}; give METRIC=NUMBER, such as exact_match=0.9"
            raise ConfigError(msg) from error
    return Gates(bounds, max_build_seconds)


def _attachments(model: "LoadedModel", scores: Path | None, study: Path | None) -> dict[str, bytes]:
    from blockexport.bundle.layout import SCORES_FILE
    from blockexport.core.study import STUDY_FILE, Study

    found: dict[str, bytes] = {}
    if scores is not None:
        importance = BlockScores.from_json(read_json(scores), model.num_blocks)
        _require_same_model(scores, importance.model, model)
        found[SCORES_FILE] = _to_bytes(importance.to_json())
    if study is not None:
        compared = Study.from_json(read_json(study))
        _require_same_model(study, compared.model_digest, model)
        found[STUDY_FILE] = _to_bytes(compared.to_json())
    return found


def _require_same_model(path: Path, digest: str, model: "LoadedModel") -> None:
    if digest not in ("", model.spec.digest):
        msg = f"{path} is about another model than {model.spec.name}; make it again for this model"
        raise ScoresError(msg)


def _to_bytes(value: dict[str, Any]) -> bytes:
    return (dump_json(value) + "\n").encode()


def _build(
    model: "LoadedModel", ladder: DepthLadder, backends: list[str] | None, out: Path, settings: dict[str, Any]
) -> "BuildReport":
    from blockexport.pipeline.build import BACKENDS, BuildOptions
    from blockexport.pipeline.build_step import build_with_summary

    with progress() as advance:
        return build_with_summary(
            model, ladder, out=out, backends=backends or BACKENDS, options=BuildOptions(**settings), on_stage=advance
        )


def _describe(report: "BuildReport") -> dict[str, Any]:
    manifest = report.bundle.manifest
    hidden = {"engines": {"__all__": {"signature"}}}
    return {
        "bundle": str(report.bundle.folder),
        "unchanged": report.unchanged,
        "levels": [level.model_dump(mode="json", exclude=hidden) for level in manifest.levels],
        "weights_bytes": manifest.weights.size_bytes,
        "seconds": report.seconds,
        "summary": str(report.summary) if report.summary else None,
        "junit": str(report.junit) if report.junit else None,
    }


def _show(output: Output, value: dict[str, Any]) -> None:
    if value["unchanged"]:
        output.line(f"nothing has changed; {value['bundle']} is up to date")
        return
    rows = []
    for level in value["levels"]:
        worst = max((record["max_abs_err"] / (record["tolerance"] or 1.0) for record in level["parity"]), default=None)
        weights = Precision.model_validate(level["precision"])
        rows.append((level["name"], level["depth"], level["skipped"], weights, quality_text(level["quality"]), worst))
    head = ("level", "blocks", "skipped", "weights", "quality", "largest error / allowed")
    output.table("Depth ladder", head, rows)
    megabytes = value["weights_bytes"] / 1e6
    output.line(f"bundle: {value['bundle']} ({megabytes:.1f} MB of weights, built in {value['seconds']:.0f} s)")
    output.line(f"summary: {value['summary']}")
