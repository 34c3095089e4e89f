"""A build as a step of CI: the bundle, or the reasons why there is none, and in both cases the files that CI shows."""

from collections.abc import Sequence
from pathlib import Path

from blockexport.core.masks import DepthLadder
from blockexport.errors import ExportError, GateError
from blockexport.models.loaded import LoadedModel
from blockexport.pipeline.build import BACKENDS, BuildOptions, Stage, build
from blockexport.pipeline.gates import GateKeeper
from blockexport.pipeline.summary import BuildOutcome, BuildReport, write_summary


def build_with_summary(
    model: LoadedModel,
    ladder: DepthLadder,
    *,
    out: Path,
    backends: Sequence[str] = BACKENDS,
    options: BuildOptions,
    keeper: GateKeeper | None = None,
    on_stage: Stage | None = None,
) -> BuildReport:
    """Build, and write the summary and the JUnit file beside `out`, whether the gates let the build pass or not.

    Input that cannot be built from leaves all files as they were.

    Args:
        model: the model.
        ladder: the levels.
        out: where the bundle goes.
        backends: who will run the engines.
        options: see `pipeline.build`.
        keeper: started when the work began; a new one when None.
        on_stage: told what begins.

    Raises:
        GateError: a gate said no; there is no new bundle, and what was at `out` is as it was.
        BlockExportError: see `pipeline.build`.
    """
    keeper = keeper or GateKeeper(options.gates)
    try:
        bundle = build(model, ladder, backends=backends, out=out, options=options, keeper=keeper, on_stage=on_stage)
    except (GateError, ExportError) as error:
        outcome = BuildOutcome(model.spec.name, ladder, keeper.results, keeper.seconds, error=str(error))
        write_summary(out, outcome)
        raise
    seconds = keeper.seconds
    outcome = BuildOutcome(model.spec.name, ladder, keeper.results, seconds, bundle.manifest)
    summary, junit = write_summary(out, outcome)
    return BuildReport(bundle, seconds, tuple(keeper.results), summary=summary, junit=junit)
