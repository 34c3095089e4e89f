"""Importance of each block, a panel for each scoring method."""

import math
from typing import Any

from blockexport.core.scores import BlockScores
from blockexport.report.markup import (
    escape,
    figure,
    folded,
    missing,
    number,
    paragraph,
    round_text,
    section,
    table,
)
from blockexport.report.material import Material
from blockexport.report.style import ACCENT, BAD, NEUTRAL, Theme, draw_svg

_COLUMNS = 3
# Share of the tallest score below which the second tallest can hardly be seen.
_TOWERS = 0.35
_AGREEMENT = (
    "Spearman rank correlation of scores per block. Where a task agrees less with another than its own halves do, the "
    "blocks to keep are others for each."
)


def render(material: Material) -> str:
    """Bars by block, each method in units of its largest score."""
    if not material.scores:
        command = f"blockexport build MODEL --ladder LADDER --scores SCORES --out {material.folder}"
        return section(
            "importance", "Importance per block", missing("importance, no scores lie in the bundle", command)
        )
    rows = math.ceil(len(material.scores) / _COLUMNS)
    columns = min(_COLUMNS, len(material.scores))

    def draw(canvas: Any, theme: Theme) -> None:
        panels = list(canvas.subplots(rows, columns, squeeze=False).flat)
        for axes, scores in zip(panels, material.scores, strict=False):
            _draw(axes, theme, scores)
        for axes in panels[len(material.scores) :]:
            axes.set_visible(False)

    label = f"importance of {material.manifest.num_blocks} blocks by {', '.join(s.method for s in material.scores)}"
    plot = draw_svg("importance", label, (10.4, 2.3 * rows + 0.4), draw)
    agreement = "".join(map(_agreement, material.scores))
    return section("importance", "Importance per block", figure(plot, _caption(material)), agreement)


def _agreement(scores: BlockScores) -> str:
    """Spearman correlations of one method's scores between halves of the samples and between tasks."""
    if not scores.halves:
        return ""
    found = scores.agreement
    said = f"Spearman between the scores from two halves of all samples: {_correlation(found.halves)}."
    head = ("task", "samples", "its two halves", "all samples", *map(escape, found.tasks))
    rows = [
        (
            escape(task.name),
            str(task.num_samples),
            _correlation(found.tasks[task.name].halves),
            _correlation(found.tasks[task.name].merged),
            *(_correlation(found.tasks[task.name].others.get(name)) for name in found.tasks),
        )
        for task in scores.tasks
    ]
    tables = _task_scores(scores) + table(head, rows, caption=_AGREEMENT) if rows else ""
    return folded(f"Agreement of scores by {scores.method}", paragraph(said) + tables)


def _task_scores(scores: BlockScores) -> str:
    """Importance per block on all samples and on each task, in the method's own unit."""
    columns = [scores.scores, *(task.scores for task in scores.tasks)]
    rows = [
        (str(block), *("protected" if block in scores.protected else number(value) for value in values))
        for block, values in enumerate(zip(*columns, strict=True))
    ]
    head = ("block", "all samples", *(escape(task.name) for task in scores.tasks))
    return table(head, rows, caption=f"Importance on each task by {scores.method}.")


def _correlation(value: float | None) -> str:
    return "-" if value is None else number(value)


def _draw(axes: Any, theme: Theme, scores: BlockScores) -> None:
    measured = [i for i in range(scores.num_blocks) if i not in scores.protected]
    largest = max((abs(scores.scores[i]) for i in measured), default=0.0) or 1.0
    values = [scores.scores[i] / largest for i in measured]
    axes.bar(
        measured,
        values,
        yerr=[scores.stderr[i] / largest for i in measured],
        color=[ACCENT if value >= 0 else BAD for value in values],
        width=0.72,
        error_kw={"ecolor": theme.ink, "elinewidth": 0.8, "capsize": 1.5},
    )
    if scores.protected:
        ones = [1.0] * len(scores.protected)
        axes.bar(scores.protected, ones, color="none", edgecolor=NEUTRAL, hatch="////", width=0.72, linewidth=0.8)
    axes.axhline(0, color=theme.muted, linewidth=0.8)
    axes.grid(visible=False, axis="x")
    off_scale = _cut_axis(axes, scores, measured, largest) if measured else ""
    axes.set_title(f"{scores.method} (n = {scores.num_samples}, largest {round_text(largest)}){off_scale}")
    axes.set_xlabel("block")
    axes.set_ylabel("score / largest")
    axes.set_xlim(-0.7, scores.num_blocks - 0.3)
    step = max(1, math.ceil(scores.num_blocks / 12))
    axes.set_xticks(range(0, scores.num_blocks, step))


def _cut_axis(axes: Any, scores: BlockScores, blocks: list[int], unit: float) -> str:
    """Cut the axis where one block towers over all others, and say so."""
    tallest = max(blocks, key=lambda block: scores.scores[block])
    others = [block for block in blocks if block != tallest]
    height = scores.scores[tallest] / unit
    second = max((abs(scores.scores[block]) / unit for block in others), default=height)
    if not 0 < second < _TOWERS * height:
        return ""
    ends = [(scores.scores[i] + sign * scores.stderr[i]) / unit for i in others for sign in (-1, 1)]
    axes.set_ylim(top=1.1 * max(ends), bottom=min(0.0, 1.1 * min(ends)))
    return f"\nblock {tallest}, at {height:.2f}, is off the scale"


def _caption(material: Material) -> str:
    protected = sorted({block for scores in material.scores for block in scores.protected})
    said = (
        "Each method in units of its own largest score, with standard errors; methods measure different things, so "
        "only the shape compares. Red is below zero: the model did better without that block."
    )
    if protected:
        listed = escape(", ".join(map(str, protected)))
        return f"{said} Hatched blocks ({listed}) are protected: they stay at every depth and were not measured."
    return f"{said} No block was protected."
