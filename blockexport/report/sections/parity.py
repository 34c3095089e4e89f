"""How far each engine is from the masked eager reference, against what is allowed."""

from typing import Any

from blockexport.bundle.manifest import ParityRecord
from blockexport.report.markup import figure, missing, section
from blockexport.report.material import Material
from blockexport.report.style import BAD, GOOD, Theme, draw_svg, format_power

_TITLE = "Parity with the eager reference"
# Errors of exactly zero have no place on a logarithmic axis; this is below anything float32 resolves.
_FLOOR = 1e-9


def render(material: Material) -> str:
    """A row for each level and check: its error, and the tolerance."""
    rows = [(f"{level.name}  {record.check}", record) for level in material.manifest.levels for record in level.parity]
    if not rows:
        command = f"blockexport build MODEL --ladder LADDER --out {material.folder}"
        return section("parity", _TITLE, missing("parity, the build compared nothing", command))

    def draw(canvas: Any, theme: Theme) -> None:
        _draw(canvas.subplots(), theme, rows)

    label = f"largest absolute error of {len(rows)} comparisons, against the tolerance of each"
    plot = draw_svg("parity", label, (8.4, 0.23 * len(rows) + 1.1), draw)
    return section("parity", _TITLE, figure(plot, _caption([record for _, record in rows])))


def _draw(axes: Any, theme: Theme, rows: list[tuple[str, ParityRecord]]) -> None:
    places = range(len(rows))
    errors = [max(record.max_abs_err, _FLOOR) for _, record in rows]
    tolerances = [max(record.tolerance, _FLOOR) for _, record in rows]
    colours = [GOOD if record.passed else BAD for _, record in rows]
    axes.hlines(places, errors, tolerances, color=theme.line, linewidth=3)
    axes.scatter(errors, places, color=colours, s=34, zorder=3, label="largest error")
    axes.scatter(tolerances, places, color=theme.ink, marker="|", s=110, linewidth=1.6, zorder=3, label="allowed")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(format_power)
    axes.xaxis.minorticks_off()
    axes.set_xlim(min(errors) / 3, max(*tolerances, *errors) * 3)
    axes.set_yticks(places, [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("largest absolute difference of an output, in its own unit")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _caption(records: list[ParityRecord]) -> str:
    said = (
        "Tolerances are derived for each input from how far eager float32 itself is from float64 "
        "(eight times that error), so they differ. "
    )
    tokens = [record.tokens_equal for record in records if record.tokens_equal is not None]
    if tokens:
        said += f"Greedy tokens were identical in {sum(tokens)} of {len(tokens)} comparisons."
    return said
