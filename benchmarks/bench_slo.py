"""How much quality do latency budgets leave, by policy, load and noise? Simulated on the demo ladder's latency model.

Requests come open-loop, from a seeded synthetic trace and from files in the format of Azure's LLM inference traces. A
load of 1 is what full depth in full batches could just work off. The clock is virtual; only decisions take real time.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slo_report
from environment import describe
from slo_decisions import decision_times
from slo_runs import NOISY, QUIET, Noise, simulate, summarise
from slo_traces import Workload, at_load, prepare, read_azure, synthesise

from blockexport.core.jsonio import dump_json, read_json, write_atomically
from blockexport.pipeline.demo import run_demo
from blockexport.routing.costs import StepCosts
from blockexport.routing.ladder import Ladder
from blockexport.routing.policies.adaptive import SeedAdaptive
from blockexport.routing.policies.deepest_fit import DeepestFit
from blockexport.routing.policies.per_request import SeedPerRequest
from blockexport.routing.step import StepPolicy
from blockexport.routing.steps.at_admission import AtAdmission
from blockexport.routing.steps.fixed import FixedDepth
from blockexport.routing.steps.priced import Priced
from blockexport.routing.steps.slack_fit import SlackFit
from blockexport.runtime import load
from blockexport.runtime.profile import stored_profile

LOADS = (0.4, 0.6, 0.8, 1.0, 1.2)
RISKS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
RISK_LOAD = 0.8
MAX_ROWS = 4


@dataclass(frozen=True, slots=True)
class Bench:
    """What all runs share."""

    ladder: Ladder
    costs: StepCosts
    seed: int

    def run(self, policy: StepPolicy, workload: Workload, noise: Noise, *, knows_all: bool = False) -> dict[str, Any]:
        """The figures of one run."""
        run = simulate(
            policy,
            workload,
            self.ladder,
            self.costs,
            noise,
            max_rows=MAX_ROWS,
            seed=self.seed,
            knows_all=knows_all,
        )
        return summarise(run, workload, self.ladder)


def policies(ladder: Ladder) -> Iterator[tuple[str, StepPolicy]]:
    """Name and policy; those called `fixed` in the same queue order and with the same shedding as ours."""
    yield "full depth, first come", FixedDepth(0, order="fifo", sheds=False)
    yield "shallowest, first come", FixedDepth(-1, order="fifo", sheds=False)
    for index, name in enumerate(ladder.names):
        yield f"fixed {name}", FixedDepth(index)
    yield "seed adaptive", AtAdmission(SeedAdaptive(), order="fifo", sheds=False, sees_now=False)
    yield "seed per request", AtAdmission(SeedPerRequest("medium"), order="fifo", sheds=False, sees_now=False)
    yield "slackfit", SlackFit()
    yield "point predictor", AtAdmission(DeepestFit())
    yield slo_report.OURS, Priced()


def compare(bench: Bench, workload: Workload) -> Iterator[dict[str, Any]]:
    """A row for each load, noise and policy; regret is against our policy when told lengths and noise."""
    for noise in (QUIET, NOISY):
        for load_ in LOADS:
            offered = at_load(workload, load_)
            cell = {"trace": workload.name, "noise": noise.name, "load": load_}
            oracle = bench.run(Priced(), offered, noise, knows_all=True)
            yield cell | {"policy": slo_report.ORACLE} | oracle
            for name, policy in policies(bench.ladder):
                found = bench.run(policy, offered, noise)
                regret = 1 - found["effective_quality"] / oracle["effective_quality"]
                yield cell | {"policy": name, "regret": regret} | found


def risk(bench: Bench, workload: Workload) -> Iterator[dict[str, Any]]:
    """A row for each setting of our risk knob."""
    for factor in RISKS:
        found = bench.run(Priced(price_factor=factor), at_load(workload, RISK_LOAD), NOISY)
        row = {"trace": workload.name, "price_factor": factor}
        yield row | {key: found[key] for key in ("effective_quality", "attainment")}


def _ladder(bundle: Path | None) -> tuple[Ladder, StepCosts]:
    """Of a profiled bundle; of the demo, built and profiled now, without one."""
    if bundle is None:
        with tempfile.TemporaryDirectory() as folder:
            return _ladder(run_demo(Path(folder), lambda _what, _share: None).bundle.folder)
    runtime = load(bundle)
    return Ladder.of(runtime.levels), StepCosts.of(stored_profile(runtime.bundle).fit)


def _ladder_like(result: Path) -> tuple[Ladder, StepCosts]:
    """Of an earlier run, to repeat it or to vary the rest."""
    value = read_json(result)
    depths = tuple(value["ladder"]["depths"])
    ladder = Ladder(tuple(f"d{depth}" for depth in depths), depths, {None: tuple(value["ladder"]["quality"])})
    return ladder, StepCosts(tuple(value["latency_ms"]["prefill"]), tuple(value["latency_ms"]["decode"]))


def main() -> None:
    """Run everything and write the figures as JSON, as Markdown and as pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trace", type=Path, action="append", default=[], help="Azure CSV, plain or gzipped")
    parser.add_argument("--bundle", type=Path, help="profiled bundle; without it the demo is built and profiled")
    parser.add_argument("--like", type=Path, help="result file of an earlier run, for its ladder and latency model")
    parser.add_argument("--requests", type=int, default=2000, help="of each trace, from its beginning")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    before = describe()
    ladder, costs = _ladder_like(args.like) if args.like else _ladder(args.bundle)
    bench = Bench(ladder, costs, args.seed)
    raw = {"synthetic": synthesise(args.requests, args.seed)}
    raw |= {
        path.name.partition(".")[0].removeprefix("AzureLLMInferenceTrace_"): read_azure(path, args.requests)
        for path in args.trace
    }
    rows, risks = [], []
    for name, trace in raw.items():
        workload = prepare(name, trace, costs, ladder.depths[0], max_rows=MAX_ROWS, seed=args.seed)
        for row in compare(bench, workload):
            rows.append(row)
            print(row["trace"], row["noise"], row["load"], row["policy"], f"{row['effective_quality']:.3f}", flush=True)
        risks += risk(bench, workload)
    result: dict[str, Any] = {
        "question": "how much quality do latency budgets leave, by policy, load and noise?",
        "ladder": {"depths": ladder.depths, "quality": ladder.worth[None]},
        "latency_ms": {"prefill": costs.prefill, "decode": costs.decode},
        "requests": args.requests,
        "max_rows": MAX_ROWS,
        "seed": args.seed,
        "rows": rows,
        "risk": risks,
        "decision_us": decision_times(args.seed),
        "before": before,
        "after": describe(),
    }
    write_atomically(args.out / "bench_slo.json", dump_json(result) + "\n")
    text = slo_report.to_markdown(result)
    write_atomically(args.out / "bench_slo.md", text)
    slo_report.save_plots(args.out, result)
    print(text)


if __name__ == "__main__":
    main()
