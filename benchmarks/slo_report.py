"""The rows of `bench_slo.py` as Markdown, and as pictures."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blockexport.report.style import ACCENT, BAD, GOOD, NEUTRAL, Theme, save_png

OURS = "ours (priced)"
ORACLE = "ours, told lengths and noise"
BEST_FIXED = "best fixed depth"
_RIVALS = (BEST_FIXED, "slackfit", "point predictor")
_SHOWN = (OURS, *_RIVALS, "full depth, first come", "seed adaptive")
_COLOURS = dict(zip(_SHOWN, (GOOD, ACCENT, "#8a63d2", "#c98a1b", BAD, NEUTRAL), strict=True))

Row = dict[str, Any]


def with_best_fixed(rows: list[Row]) -> list[Row]:
    """The rows, and for each cell that of the fixed depth that turned out best in it, under a name of its own."""
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row["policy"].startswith("fixed "):
            found = best.setdefault(_cell(row), row)
            if row["effective_quality"] > found["effective_quality"]:
                best[_cell(row)] = row
    return [*rows, *({**row, "policy": BEST_FIXED} for row in best.values())]


def _cell(row: Row) -> tuple[Any, ...]:
    return row["trace"], row["noise"], row["load"]


def to_markdown(result: dict[str, Any]) -> str:
    """Effective quality by policy and load, one table for each trace and noise; then what else was measured."""
    rows = with_best_fixed(result["rows"])
    conditions = (
        f"Simulated: {result['requests']} requests of each trace, {result['max_rows']} rows share a step, seed "
        f"{result['seed']}. Effective quality is the mean over all offered requests of the quality delivered in time."
    )
    lines = [conditions]
    for trace, noise in dict.fromkeys((row["trace"], row["noise"]) for row in rows):
        found = [row for row in rows if (row["trace"], row["noise"]) == (trace, noise)]
        lines += ["", f"### {trace}, {noise}", "", *_table(found)]
    lines += ["", "### Ours in detail", "", *_details([row for row in rows if row["policy"] == OURS])]
    lines += ["", "### Against the figures to reach", "", *_verdicts(rows, result["decision_us"])]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _table(rows: list[Row]) -> list[str]:
    loads = sorted({row["load"] for row in rows})
    lines = [_line(["effective quality (attainment)", *(f"load {load}" for load in loads)])]
    lines.append(_line("---" for _ in range(len(loads) + 1)))
    for policy in dict.fromkeys(row["policy"] for row in rows):
        by_load = {row["load"]: row for row in rows if row["policy"] == policy}
        cells = [f"{by_load[at]['effective_quality']:.3f} ({by_load[at]['attainment']:.2f})" for at in loads]
        lines.append(_line([policy, *cells]))
    return lines


_DETAILS: tuple[tuple[str, str, str], ...] = (
    ("goodput_per_s", "goodput, 1/s", ".2f"),
    ("mean_depth", "mean depth", ".1f"),
    ("tardiness_p99_ms", "tardiness p99, ms", ".0f"),
    ("switches_per_served", "switches", ".2f"),
    ("shed", "shed", ".2f"),
    ("wasted_work", "wasted", ".3f"),
    ("regret", "regret", ".3f"),
)


def _details(rows: list[Row]) -> list[str]:
    heads = ["trace", "noise", "load", *(head for _, head, _ in _DETAILS), "coverage", "worst minute", "recovery, ms"]
    lines = [_line(heads), _line("---" for _ in heads)]
    for row in rows:
        recovery = row["recovery_ms"]
        lines.append(
            _line(
                [
                    row["trace"],
                    row["noise"],
                    row["load"],
                    *(format(row[key], spec) for key, _, spec in _DETAILS),
                    *(_share(row["coverage"][key]) for key in ("overall", "worst_minute")),
                    f"{recovery['median']:.0f} (at most {recovery['max']:.0f})" if recovery else "",
                ]
            )
        )
    return lines


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _verdicts(rows: list[Row], decision_us: Row) -> list[str]:
    lines = []
    ours = {_cell(row): row for row in rows if row["policy"] == OURS}
    for rival in _RIVALS:
        gains = {
            _cell(row): ours[_cell(row)]["effective_quality"] - row["effective_quality"]
            for row in rows
            if row["policy"] == rival
        }
        lost = [f"{cell[0]} {cell[1]} at {cell[2]} ({gain:+.3f})" for cell, gain in gains.items() if gain <= 0]
        held = f"above in all {len(gains)}" if not lost else f"not above in {', '.join(lost)}"
        lines.append(f"- {rival}: {held}; gain {min(gains.values()):+.3f} to {max(gains.values()):+.3f}.")
    for load, limit in ((0.6, 0.05), (1.0, 0.1)):
        found = [row["regret"] for row in ours.values() if row["load"] == load]
        lines.append(f"- Regret at {load}: at most {max(found):.3f} (to reach: {limit}).")
    noisy = [row for row in ours.values() if row["recovery_ms"]]
    worst = [row["coverage"]["worst_minute"] for row in noisy if row["coverage"]["worst_minute"] is not None]
    if worst:
        slowest = max(row["recovery_ms"]["max"] for row in noisy)
        lines.append(f"- Worst minute covered with steps of 1.7x: {min(worst):.3f} (to reach: 0.9 of a nominal 0.95).")
        lines.append(
            f"- A change of speed is followed within {slowest:.0f} ms of engine time at most (to reach: 2000)."
        )
    lines.append(
        f"- A decision with {decision_us['levels']} levels, {decision_us['waiting']} waiting and "
        f"{decision_us['running']} running takes {decision_us['p50']:.0f} us (p50), {decision_us['p99']:.0f} us (p99), "
        f"{decision_us['p99.9']:.0f} us (p99.9) (to reach: p99 of 50)."
    )
    return lines


def save_plots(folder: Path, result: dict[str, Any]) -> None:
    """Effective quality against load, and against attainment over the risk knob."""
    rows = with_best_fixed(result["rows"])
    traces = list(dict.fromkeys(row["trace"] for row in rows))
    noises = list(dict.fromkeys(row["noise"] for row in rows))

    def draw_loads(figure: Any, _theme: Theme) -> None:
        panels = figure.subplots(len(noises), len(traces), squeeze=False, sharey=True)
        for noise, line in zip(noises, panels, strict=True):
            for trace, axes in zip(traces, line, strict=True):
                _draw_loads(axes, [row for row in rows if (row["trace"], row["noise"]) == (trace, noise)])
                axes.set_title(f"{trace}, {noise}")
            line[0].set_ylabel("effective quality")
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)

    def draw_risks(figure: Any, _theme: Theme) -> None:
        axes = figure.subplots()
        for trace, colour in zip(traces, (GOOD, ACCENT, BAD, NEUTRAL), strict=False):
            found = [row for row in result["risk"] if row["trace"] == trace]
            shares, qualities = [[row[key] for row in found] for key in ("attainment", "effective_quality")]
            axes.plot(shares, qualities, marker="o", color=colour, label=trace)
            for row in found:
                axes.annotate(f"{row['price_factor']:g}", (row["attainment"], row["effective_quality"]), fontsize=7)
        axes.set_xlabel("requests in time")
        axes.set_ylabel("effective quality")
        axes.set_title("By the price of time (numbers), noisy neighbour")
        axes.legend()

    save_png(folder / "bench_slo.png", (3.4 * len(traces), 5.6), draw_loads)
    save_png(folder / "bench_slo_risk.png", (6, 4), draw_risks)


def _draw_loads(axes: Any, rows: list[Row]) -> None:
    for policy in _SHOWN:
        found = sorted((row for row in rows if row["policy"] == policy), key=lambda row: float(row["load"]))
        axes.plot(
            [row["load"] for row in found],
            [row["effective_quality"] for row in found],
            marker="o",
            color=_COLOURS[policy],
            label=policy,
            zorder=3 if policy == OURS else 2,
        )
    axes.set_xlabel("load")
    axes.set_ylim(bottom=0)
    axes.label_outer()
