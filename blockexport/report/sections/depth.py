"""Quality against depth for every strategy that was compared."""

from typing import Any

from blockexport.core.study import Study
from blockexport.report.markup import escape, figure, folded, missing, section, table, with_error
from blockexport.report.material import Material
from blockexport.report.plots import LEVELS_LABEL, axis_label, draw_by_depth, draw_levels, set_depth_axis
from blockexport.report.style import Theme, draw_svg

_TITLE = "Quality against depth"
# Choices of which the worst is so many times as far off as the third quartile do not fit one picture.
_CROWDED = 2.0


def render(material: Material) -> str:
    """A panel for each metric, with the bundle's own levels marked, and the figures as a table."""
    parts = []
    metrics = material.metrics
    if material.study is None:
        command = f"blockexport study MODEL, then blockexport build MODEL --study study.json --out {material.folder}"
        parts.append(missing("a comparison of strategies, no study lies in the bundle", command))
    else:
        metrics = metrics or [name for name in material.study.full.quality.metrics if "/" not in name]
    if metrics:
        parts.append(figure(_plot(material, metrics), _caption(material)))
    else:
        command = f"blockexport build MODEL --ladder LADDER --data DATA --out {material.folder}"
        parts.append(missing("the quality of the levels, the build had no data to measure it on", command))
    if material.study is not None:
        parts.append(_table(material.study))
    return section("depth", _TITLE, *parts)


def _plot(material: Material, metrics: list[str]) -> str:
    study, levels = material.study, material.manifest.levels
    enlarged = _enlarged(material, metrics[0]) if len(metrics) == 1 else None
    names = metrics if enlarged is None else [*metrics, metrics[0]]

    def draw(canvas: Any, theme: Theme) -> None:
        panels = canvas.subplots(1, len(names), squeeze=False)[0]
        for axes, metric in zip(panels, names, strict=True):
            if study is not None and metric in study.full.quality.metrics:
                draw_by_depth(axes, theme, study, metric)
            else:
                set_depth_axis(axes, [level.depth for level in levels], material.manifest.num_blocks)
                axes.set_ylabel(axis_label(metric))
            own = [(level.depth, material.quality(level)[metric]) for level in levels if material.quality(level)]
            if own:
                draw_levels(axes, theme, own, LEVELS_LABEL)
        if enlarged is not None:
            panels[-1].set_ylim(*enlarged)
            panels[-1].set_title("the same, enlarged")
        handles, labels = panels[0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside right center")

    width = 8.4 if len(names) == 1 else 10.8
    return draw_svg("depth", f"{', '.join(metrics)} against depth", (width, 4.0), draw)


def _enlarged(material: Material, metric: str) -> tuple[float, float] | None:
    """The range of the better three quarters of all choices, when the others would hide what they differ in."""
    if material.study is None:
        return None
    values = sorted(row.quality.metrics[metric].value for row in material.study.rows)
    if material.study.full.quality.metrics[metric].higher_is_better:
        values.reverse()
    best, middle, worst = values[0], values[len(values) * 3 // 4], values[-1]
    if abs(worst - best) < _CROWDED * abs(middle - best):
        return None
    margin = (middle - best) * 0.25
    return (min(best - margin, middle + margin), max(best - margin, middle + margin))


def _caption(material: Material) -> str:
    study = material.study
    if study is None:
        return "The levels of this bundle, measured on their engines. Bars are standard errors over samples."
    return (
        f"Lines: every strategy, measured with the {escape(study.evaluator)} model on "
        f"{study.test_data.num_samples} test samples. Rings: the levels of this bundle, measured on their engines"
        f"{_same_samples(material, study)}. Bars are standard errors over samples; all strategies saw the same "
        "samples, so differences between them are more certain than the bars suggest. Marks are moved sideways a "
        "little. <code>threshold</code> uses the threshold that leaves the depth, so it keeps what <code>top_k</code> "
        "keeps on the same scores. <code>activation</code> is shown as a baseline: it ranks by the size of "
        "activations, which grows along the model."
    )


def _same_samples(material: Material, study: Study) -> str:
    measured_on = material.manifest.data.get("quality", {})
    if isinstance(measured_on, dict) and measured_on.get("digest") == study.test_data.digest:
        return " with the same samples"
    return " with other samples, so they may lie beside their line"


def _table(study: Study) -> str:
    metrics = list(study.full.quality.metrics)
    head = ["strategy", "depth", "kept", *(escape(name.replace("_", " ")) for name in metrics)]
    rows = []
    for row in study.rows:
        kept = escape(" ".join(map(str, row.kept)))
        figures = [with_error(row.quality.metrics[name].value, row.quality.metrics[name].stderr) for name in metrics]
        rows.append([escape(row.label), str(row.depth), f'<span class="soft">{kept}</span>', *figures])
    return folded(f"All {len(study.rows)} choices as a table", table(head, rows))
