"""Quality against depth for every strategy: in the report, and as the picture of a README."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blockexport.bundle.reader import open_bundle
from blockexport.core.jsonio import read_json
from blockexport.core.quality import HIGHER_IS_BETTER, MetricValue
from blockexport.core.study import FULL, STUDY_FILE, Study, StudyRow
from blockexport.errors import BundleError, ConfigError
from blockexport.report.style import ACCENT, BAD, GOOD, NEUTRAL, Theme, save_png

# One colour and mark for each choice, the same in every plot. Threshold shares the colour of the scores it rests on.
_LINES: dict[tuple[str, str], tuple[str, str]] = {
    ("greedy", ""): (GOOD, "o"),
    ("beam", ""): ("#5d6d1e", "d"),
    ("top_k", "loss_drop"): (ACCENT, "s"),
    ("threshold", "loss_drop"): (ACCENT, "s"),
    ("top_k", "accuracy_drop"): ("#8a63d2", "^"),
    ("top_k", "block_influence"): ("#16a0b5", "v"),
    ("top_k", "gradient"): ("#e0862b", "D"),
    ("top_k", "attention"): ("#c45fa8", "P"),
    ("sequential", ""): (NEUTRAL, "X"),
    ("top_k", "activation"): (BAD, "*"),
}
_OTHER = ("#9a8c3c", "h")
LEVELS_LABEL = "this bundle, on its engines"
# Blocks between neighbouring lines at one depth, so that error bars do not hide one another.
_DODGE = 0.007

Source = Study | Path | str


def axis_label(metric: str) -> str:
    """A metric in words, with the direction that is better."""
    better = HIGHER_IS_BETTER.get(metric)
    direction = "" if better is None else ", higher is better" if better else ", lower is better"
    return metric.replace("_", " ").replace("per byte", "per UTF-8 byte") + direction


def draw_by_depth(axes: Any, theme: Theme, study: Study, metric: str) -> None:
    """One line for each way of choosing blocks, from the full model down, with standard errors."""
    for index, (choice, rows) in enumerate(_by_choice(study).items()):
        shift = _DODGE * study.num_blocks * (index - len(_LINES) / 2) / 2
        places = [row.depth + (0 if row.strategy == FULL else shift) for row in rows]
        _draw_choice(axes, choice, rows, places, metric)
    set_depth_axis(axes, [row.depth for row in study.rows], study.num_blocks)
    axes.set_ylabel(axis_label(metric))
    full = study.full.quality.metrics[metric]
    axes.axhline(full.value, color=theme.muted, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)


def draw_by_latency(axes: Any, study: Study, metric: str, times_ms: Mapping[int, float]) -> None:
    """The same lines over the milliseconds measured for each depth; depths that were not measured are left out."""
    for choice, rows in _by_choice(study).items():
        timed = [row for row in rows if row.depth in times_ms]
        if len(timed) > 1:
            _draw_choice(axes, choice, timed, [times_ms[row.depth] for row in timed], metric)


def _draw_choice(
    axes: Any, choice: tuple[str, str], rows: Sequence[StudyRow], places: Sequence[float], metric: str
) -> None:
    colour, mark = _LINES.get(choice, _OTHER)
    is_threshold = choice[0] == "threshold"
    figures = [row.quality.metrics[metric] for row in rows]
    axes.errorbar(
        places,
        [figure.value for figure in figures],
        yerr=[figure.stderr for figure in figures],
        color=colour,
        marker=mark,
        markersize=9 if is_threshold else 5,
        markerfacecolor="none" if is_threshold else colour,
        linestyle=(0, (4, 3)) if is_threshold else "-",
        elinewidth=0.9,
        label=rows[-1].label,
        zorder=3 if choice == ("greedy", "") else 2,
    )


def draw_levels(axes: Any, theme: Theme, levels: Sequence[tuple[int, MetricValue]], label: str) -> None:
    """The levels of a bundle as hollow marks, by depth."""
    axes.errorbar(
        [depth for depth, _ in levels],
        [figure.value for _, figure in levels],
        yerr=[figure.stderr for _, figure in levels],
        color=theme.ink,
        marker="o",
        markersize=11,
        markerfacecolor="none",
        markeredgewidth=1.4,
        linestyle="none",
        elinewidth=0.9,
        label=label,
        zorder=4,
    )


def set_depth_axis(axes: Any, depths: Sequence[int], num_blocks: int) -> None:
    """Depth from deep to shallow, since a ladder is read downwards, with its share of the model."""
    ticks = sorted(set(depths))
    axes.set_xticks(ticks, [f"{depth}\n{depth / num_blocks:.0%}" for depth in ticks])
    margin = 0.06 * num_blocks
    axes.set_xlim(max(ticks) + margin, min(ticks) - margin)
    axes.set_xlabel(f"kept blocks of {num_blocks}")


def _by_choice(study: Study) -> dict[tuple[str, str], list[StudyRow]]:
    """Rows of each way of choosing, deepest first and led by the full model, in the order of `_LINES`."""
    grouped: dict[tuple[str, str], list[StudyRow]] = {}
    for row in sorted(study.rows[1:], key=lambda row: -row.depth):
        grouped.setdefault((row.strategy, row.method), [study.full]).append(row)
    known = [choice for choice in _LINES if choice in grouped]
    return {choice: grouped[choice] for choice in [*known, *(c for c in grouped if c not in _LINES)]}


def save_ladder_plot(sources: Source | Sequence[Source], out: Path) -> Path:
    """Quality against depth for every strategy, a panel for each model, as a PNG on white.

    Args:
        sources: a study, a bundle that holds one, or several of these, side by side; of each the primary metric.
        out: the PNG.

    Raises:
        BackendUnavailableError: matplotlib is missing.
        BundleError: there is no bundle, or it holds no study.
        ConfigError: there is no source.
    """
    listed = [sources] if isinstance(sources, Study | Path | str) else list(sources)
    studies = [source if isinstance(source, Study) else _study_of(Path(source)) for source in listed]
    if not studies:
        msg = "no study to plot; give a study or a bundle that holds one"
        raise ConfigError(msg)

    def draw(figure: Any, theme: Theme) -> None:
        panels = figure.subplots(1, len(studies), squeeze=False)[0]
        entries: dict[str, Any] = {}
        for axes, study in zip(panels, studies, strict=True):
            metric = study.full.quality.primary[0]
            draw_by_depth(axes, theme, study, metric)
            axes.set_title(f"{study.model}, {study.test_data.num_samples} test samples")
            handles, labels = axes.get_legend_handles_labels()
            entries |= dict(zip(labels, handles, strict=True))
        figure.legend(entries.values(), entries.keys(), loc="outside right center")

    save_png(out, (4.1 * len(studies) + 2.2, 4.0), draw)
    return out


def _study_of(path: Path) -> Study:
    bundle = open_bundle(path)
    if not any(entry.path == STUDY_FILE for entry in bundle.manifest.files):
        msg = f"{path} holds no {STUDY_FILE}; build it with one attached, as `blockexport demo` does"
        raise BundleError(msg)
    return Study.from_json(read_json(path / STUDY_FILE))
