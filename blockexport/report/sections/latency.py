"""Quality against measured latency: what a budget buys."""

from typing import Any

from blockexport.core.latency import LatencyPoint, LatencyProfile
from blockexport.core.latency_fit import Phase
from blockexport.core.quality import MetricValue
from blockexport.report.markup import escape, figure, missing, number, section
from blockexport.report.material import Material
from blockexport.report.plots import LEVELS_LABEL, axis_label, draw_by_latency
from blockexport.report.style import Theme, draw_svg

_TITLE = "Quality against latency"
# Room to the right of the slowest median; on a busy host p95 is many times that, and would squeeze all else.
_ROOM = 1.45


def render(material: Material) -> str:
    """A panel for each metric and phase, a ring for each level and a line for each way of choosing blocks."""
    if material.profile is None:
        command = f"blockexport profile {material.folder}"
        return section("latency", _TITLE, missing("latency, no host was profiled with this build", command))
    note = "" if material.is_own_profile else _other_host(material, material.profile)
    if not material.metrics:
        command = f"blockexport build MODEL --ladder LADDER --data DATA --out {material.folder}"
        why = missing("quality against latency, quality was not measured", command)
        return section("latency", _TITLE, note, why)
    shown = [phase for phase in material.phases if all(_points(material, phase))]
    plot = draw_svg(
        "latency", "quality of each level against its latency", _size(material, shown), _drawing(material, shown)
    )
    return section("latency", _TITLE, note, figure(plot, _caption(material, material.profile)))


def _other_host(material: Material, profile: LatencyProfile) -> str:
    cpu = escape(profile.host.cpu)
    return missing(
        f"latency of this host; what follows was measured on {cpu}", f"blockexport profile {material.folder}"
    )


def _points(material: Material, phase: Phase) -> list[LatencyPoint | None]:
    return [material.point(level.name, phase) for level in material.manifest.levels]


def _size(material: Material, shown: list[Phase]) -> tuple[float, float]:
    legend = 0.0 if material.study is None else 1.7
    return (min(11.0, 4.6 * max(1, len(shown)) + legend), 3.4 * len(material.metrics) + 0.3)


def _drawing(material: Material, shown: list[Phase]) -> Any:
    def draw(canvas: Any, theme: Theme) -> None:
        panels = canvas.subplots(len(material.metrics), len(shown), squeeze=False)
        for row, metric in zip(panels, material.metrics, strict=True):
            for axes, phase in zip(row, shown, strict=True):
                marks = [
                    (level.name, point, material.quality(level)[metric])
                    for level, point in zip(material.manifest.levels, _points(material, phase), strict=True)
                    if point is not None and metric in material.quality(level)
                ]
                times = {point.depth: point.summary.p50_ms for _, point, _ in marks}
                if material.study is not None and metric in material.study.full.quality.metrics:
                    draw_by_latency(axes, material.study, metric, times)
                _draw_levels(axes, theme, marks)
                axes.set_xlabel(_axis(marks[0][1]))
                axes.set_ylabel(axis_label(metric))
        if material.study is not None:
            handles, labels = panels[0][0].get_legend_handles_labels()
            canvas.legend(handles, labels, loc="outside right center")

    return draw


def _draw_levels(axes: Any, theme: Theme, marks: list[tuple[str, LatencyPoint, MetricValue]]) -> None:
    times = [point.summary.p50_ms for _, point, _ in marks]
    values = [quality.value for _, _, quality in marks]
    axes.errorbar(
        times,
        values,
        xerr=[[0.0] * len(marks), [max(0.0, p.summary.p95_ms - p.summary.p50_ms) for _, p, _ in marks]],
        yerr=[quality.stderr for _, _, quality in marks],
        color=theme.ink,
        marker="o",
        markersize=11,
        markerfacecolor="none",
        markeredgewidth=1.4,
        linestyle="none",
        elinewidth=0.9,
        label=LEVELS_LABEL,
        zorder=4,
    )
    for (name, _, _), time, value in zip(marks, times, values, strict=True):
        axes.annotate(
            name,
            (time, value),
            xytext=(9, 8),
            textcoords="offset points",
            color=theme.ink,
            fontsize=9,
            fontweight="bold",
        )
    axes.set_xlim(0, max(times) * _ROOM)
    axes.margins(y=0.14)


def _is_cut(points: list[LatencyPoint | None]) -> bool:
    summaries = [point.summary for point in points if point is not None]
    slowest = max((summary.p50_ms for summary in summaries), default=0.0)
    return any(summary.p95_ms > _ROOM * slowest for summary in summaries)


def _axis(point: LatencyPoint) -> str:
    if point.phase == "prefill":
        return f"prompt of {point.new_tokens} tokens, ms (mark p50, bar to p95)"
    if point.phase == "decode":
        return f"one token behind {point.kv_tokens}, ms (mark p50, bar to p95)"
    return "one pass, ms (mark p50, bar to p95)"


def _caption(material: Material, profile: LatencyProfile) -> str:
    points = [point for phase in material.phases for point in _points(material, phase) if point is not None]
    counts = sorted({point.summary.n for point in points})
    calls = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    threads = f"{profile.threads} {'thread' if profile.threads == 1 else 'threads'}"
    grid = ", the quick grid" if profile.quick else ""
    parts = [
        f"Medians of {calls} calls at batch 1 with {threads} on {escape(profile.host.cpu)}{grid}.",
        "Rings: the levels of this bundle, quality measured on their engines; bars are standard errors.",
    ]
    if material.study is not None:
        parts.append(
            "Lines: every strategy at the latency of the level with as many blocks, since latency hangs on how many "
            "blocks run, not on which."
        )
    if any(_is_cut(_points(material, phase)) for phase in material.phases):
        parts.append("A bar that reaches the edge goes on beyond it; the p95 is in the table of the ladder.")
    phase = material.phases[-1]
    # One depth alone cannot tell what depends on depth, nor can levels that are no line over it.
    if len({point.depth for point in profile.points}) > 1 and profile.fit.phase(phase).table is None:
        what = "step" if phase == "decode" else "pass"
        offset = number(profile.fit.offset_ms(phase), digits=2, unit="ms")
        parts.append(
            f"Of each {what}, {offset} do not depend on depth (fitted: embedding, head, call), which no level can go "
            "below."
        )
    return " ".join(parts)
