"""`blockexport generate`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockexport.cli.options import BudgetOption, BundleArgument, ThreadsOption, TpotOption, TtftOption, budget_of
from blockexport.cli.output import Output
from blockexport.cli.verb import JsonFlag, Result, current_output, verb
from blockexport.core.latency import LatencyBudget
from blockexport.errors import ProfileError, RequestError

if TYPE_CHECKING:
    from blockexport.runtime.runtime import Generation, Runtime

# What decoding gives for bytes that are not yet a whole character.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@verb
def generate(
    bundle: BundleArgument,
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    budget_ms: BudgetOption = None,
    ttft_ms: TtftOption = None,
    tpot_ms: TpotOption = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture that the text is about; may be given several times.")
    ] = None,
    level: Annotated[str | None, typer.Option(help="Run this level, whatever it takes.")] = None,
    vision_level: Annotated[str | None, typer.Option(help="Read pictures at this level; else the deepest.")] = None,
    policy: Annotated[str, typer.Option(help="How the budget picks the level; see plan.")] = "deepest-fit",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw among so many most likely tokens; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among the fewest tokens with this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    threads: ThreadsOption = 0,
    backend: Annotated[str, typer.Option(help="Who runs the levels: onnxruntime or aotinductor.")] = "onnxruntime",
    device: Annotated[str, typer.Option(help="Where the graphs run: cpu or cuda.")] = "cpu",
    as_json: JsonFlag = False,
) -> Result:
    """Continue a text within a latency budget.

    The deepest level that fits runs; without a budget, the deepest of all. The text is printed as it comes.
    A model that reads pictures gets the prompt in the form in which it was trained to be asked.
    """
    import blockexport
    from blockexport.runtime.sampling import Sampling

    budget = budget_of(budget_ms, ttft_ms, tpot_ms)
    runtime = blockexport.load(bundle, threads=threads, backend=backend, device=device)
    if runtime.spec.kind != "decoder":
        msg = f"{runtime.spec.name} is no decoder and continues no text; give a bundle of a language model"
        raise RequestError(msg)
    inputs = _inputs(runtime, prompt, image or ())
    request = _request(inputs, max_new_tokens, vision_level)
    _warm_up(runtime, level, policy, budget, request)
    on_token = None if as_json else _stream(runtime, current_output())
    found = runtime.generate(
        inputs.pop("input_ids"),
        max_new_tokens,
        budget=budget,
        level=level,
        policy=policy,
        on_token=on_token,
        sampling=Sampling(temperature, top_k, top_p, seed),
        vision_level=vision_level,
        **inputs,
    )
    predicted_ms = _predicted_ms(runtime, found, request)
    value = {
        "text": runtime.tokenizer.decode(found.tokens),
        "tokens": found.tokens,
        "level": found.level,
        "predicted_ms": predicted_ms,
        "observed_ms": found.observed_ms,
        "ttft_ms": found.ttft_ms,
        "switches": [list(switch) for switch in found.switches],
        "reason": found.decision.reason if found.decision else None,
    }
    return Result(value, lambda output: _show(output, value))


def _inputs(runtime: "Runtime", prompt: str, pictures: Sequence[Path]) -> dict[str, Any]:
    """Tokens, and the arrays of pictures, as `Runtime.generate` takes them."""
    from blockexport.runtime.processor import has_processor, load_processor

    if pictures or has_processor(runtime.bundle):
        return dict(load_processor(runtime.bundle)(prompt, pictures))
    return {"input_ids": runtime.tokenizer.encode(prompt).ids}


def _request(inputs: dict[str, Any], new_tokens: int, vision_level: str | None) -> dict[str, Any]:
    """The size of a request as `Runtime.plan` takes it."""
    return {
        "prompt_tokens": len(inputs["input_ids"]),
        "new_tokens": new_tokens,
        "num_crops": len(inputs.get("images", ())),
        "vision_level": vision_level,
    }


def _warm_up(
    runtime: "Runtime", level: str | None, policy: str, budget: LatencyBudget | None, request: dict[str, Any]
) -> None:
    """Open what will run: a prediction is about an open engine, and is told beside the observation."""
    if level is None and budget is not None:
        decision = runtime.plan(**request, budget=budget, policy=policy)
        if not decision.feasible:
            return
        level = decision.level
    runtime.warm_up([runtime.level(level).name])


def _predicted_ms(runtime: "Runtime", found: "Generation", request: dict[str, Any]) -> float | None:
    """What was promised; for a level that the caller named, what it was to be expected of; None without a profile."""
    if found.decision is not None:
        return found.decision.predicted_ms
    try:
        return runtime.plan(**request, policy=f"fixed:{found.level}").predicted_ms
    except ProfileError:
        return None


def _stream(runtime: "Runtime", output: Output) -> Callable[[int, int], None]:
    """A callback that prints each piece of text once it is whole."""
    tokens: list[int] = []
    printed = 0

    def on_token(_row: int, token: int) -> None:
        nonlocal printed
        tokens.append(token)
        text = runtime.tokenizer.decode(tokens)
        if not text.endswith(_INCOMPLETE):
            output.stream.write(text[printed:])
            output.stream.flush()
            printed = len(text)

    return on_token


def _show(output: Output, value: dict[str, Any]) -> None:
    predicted = "" if value["predicted_ms"] is None else f", {value['predicted_ms']:.0f} ms predicted"
    output.line()
    output.line()
    output.line(f"[{len(value['tokens'])} tokens at level {value['level']}, {value['observed_ms']:.0f} ms{predicted}]")
