"""Quality against measured latency: what a budget buys."""

from typing import Any

from blockexport.core.latency import LatencyPoint, LatencyProfile
from blockexport.core.latency_fit import Phase
from blockexport.core.quality import MetricValue
from blockexport.report.markup import escape, figure, missing, number, section
from blockexport.report.material import Material
from blockexport.report.plots import axis_label
from blockexport.report.style import ACCENT, Theme, draw_svg

_TITLE = "Quality against latency"
# Room to the right of the slowest median; on a busy host p95 is many times that, and would squeeze all else.
_ROOM = 1.45


def render(material: Material) -> str:
    """A panel for each metric and phase, a mark for each level."""
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
    return (min(10.4, 5.2 * max(1, len(shown))), 3.1 * len(material.metrics) + 0.3)


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
                _draw(axes, theme, marks)
                axes.set_xlabel(_axis(marks[0][1]))
                axes.set_ylabel(axis_label(metric))

    return draw


def _draw(axes: Any, theme: Theme, marks: list[tuple[str, LatencyPoint, MetricValue]]) -> None:
    times = [point.summary.p50_ms for _, point, _ in marks]
    values = [quality.value for _, _, quality in marks]
    axes.errorbar(
        times,
        values,
        xerr=[[0.0] * len(marks), [max(0.0, p.summary.p95_ms - p.summary.p50_ms) for _, p, _ in marks]],
        yerr=[quality.stderr for _, _, quality in marks],
        color=ACCENT,
        marker="o",
        markersize=6,
        elinewidth=0.9,
    )
    for (name, _, quality), time, value in zip(marks, times, values, strict=True):
        above = quality.higher_is_better
        axes.annotate(
            name,
            (time, value),
            xytext=(7, -13 if above else 8),
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
    counts = {p.summary.n for phase in material.phases for p in _points(material, phase) if p is not None}
    low, high = min(counts), max(counts)
    said = (
        f"Medians of {low if low == high else f'{low} to {high}'} calls at batch 1 with {profile.threads} "
        f"{'thread' if profile.threads == 1 else 'threads'} on {escape(profile.host.cpu)}"
        f"{', the quick grid' if profile.quick else ''}. Quality on the engines, bars are standard errors. "
    )
    if any(_is_cut(_points(material, phase)) for phase in material.phases):
        said += "A bar that reaches the edge goes on beyond it; the p95 is in the table of the ladder. "
    depths = {point.depth for point in profile.points}
    phase = material.phases[-1]
    if len(depths) < 2:
        # One depth cannot tell what depends on depth.
        return said
    offset = profile.fit.offset_ms(phase)
    what = "step" if phase == "decode" else "pass"
    return (
        f"{said}Of each {what}, {number(offset, digits=2, unit='ms')} do not depend on depth (fitted: embedding, head, "
        "call), which no level can go below."
    )
