"""`blockexport plan`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from blockexport.cli.options import BudgetOption, BundleArgument, TpotOption, TtftOption, budget_of
from blockexport.cli.output import Output
from blockexport.cli.verb import GATE_FAILED, JsonFlag, Result, verb
from blockexport.errors import RequestError

if TYPE_CHECKING:
    from blockexport.routing.decision import RoutingDecision
    from blockexport.runtime.runtime import Runtime


@verb
def plan(
    bundle: BundleArgument,
    budget_ms: BudgetOption = None,
    ttft_ms: TtftOption = None,
    tpot_ms: TpotOption = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the prompt; 0 for pictures.")] = 0,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 0,
    batch: Annotated[int, typer.Option(help="Requests served together.")] = 1,
    image_size: Annotated[
        list[str] | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="A picture beside these tokens, in pixels; repeatable."),
    ] = None,
    vision_level: Annotated[str | None, typer.Option(help="Level that reads them; else the deepest.")] = None,
    policy: Annotated[
        str, typer.Option(help="deepest-fit, seed-adaptive, seed-per-request:COMPLEXITY or fixed:LEVEL.")
    ] = "deepest-fit",
    min_quality: Annotated[float | None, typer.Option(help="What the level's first metric must reach.")] = None,
    as_json: JsonFlag = False,
) -> Result:
    """Say which level would serve a request, and why.

    Nothing is run. Exits 3 when no level fits the budget.
    """
    import blockexport

    budget = budget_of(budget_ms, ttft_ms, tpot_ms)
    runtime = blockexport.load(bundle, verify=False)
    image_tokens, crops = _predict(runtime, image_size or ())
    decision = runtime.plan(
        prompt_tokens=prompt_tokens + image_tokens,
        new_tokens=new_tokens,
        budget=budget,
        batch=batch,
        policy=policy,
        min_quality=min_quality,
        num_crops=crops,
        vision_level=vision_level,
    )
    code = 0 if decision.feasible else GATE_FAILED
    bases = runtime.profile.fit.bases
    value = decision.to_json() | {"latency_model": bases}
    return Result(value, lambda output: _show(output, decision, bases), code)


def _predict(runtime: "Runtime", sizes: Sequence[str]) -> tuple[int, int]:
    """Tokens and crops of pictures of these sizes."""
    if not sizes:
        return 0, 0
    from blockexport.runtime.processor import load_processor

    processor = load_processor(runtime.bundle)
    predicted = [processor.predict(*_pixels(size)) for size in sizes]
    return sum(tokens for tokens, _ in predicted), sum(crops for _, crops in predicted)


def _pixels(size: str) -> tuple[int, int]:
    width, _, height = size.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        msg = f"--image-size is {size!r}; give WIDTHxHEIGHT in pixels, such as 640x480"
        raise RequestError(msg)
    return int(width), int(height)


def _show(output: Output, decision: "RoutingDecision", bases: Mapping[str, str]) -> None:
    output.line(f"{decision.level} ({decision.depth} blocks): {decision.reason}")
    if not decision.feasible:
        output.line("infeasible: no level keeps this budget")
    if decision.vision_ms:
        output.line(f"{decision.vision_ms:.1f} ms of it, at every level, read the pictures")
    chosen = (decision.level, decision.depth, decision.predicted_ms, decision.bound_ms, decision.feasible)
    others = [(a.level, a.depth, a.predicted_ms, a.bound_ms, a.feasible) for a in decision.alternatives]
    rows = sorted([chosen, *others], key=lambda row: -row[1])
    output.table("Milliseconds", ("level", "blocks", "predicted", "bound", "feasible"), rows)
    for phase, basis in bases.items():
        output.line(f"{phase} is predicted by {basis}")
