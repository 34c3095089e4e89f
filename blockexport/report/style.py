"""How every plot looks, and how it becomes a picture: inline SVG that follows the page's colours, or a PNG."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from blockexport.core.jsonio import write_atomically
from blockexport.errors import BackendUnavailableError
from blockexport.report.markup import escape


@dataclass(frozen=True, slots=True)
class Theme:
    """The colours that depend on the paper; those of the data do not."""

    ink: str
    muted: str
    line: str
    paper: str


# Stand-ins that no plot uses otherwise: in SVG they become CSS colours, so that one plot serves light and dark pages.
SCREEN = Theme(ink="#010203", muted="#040506", line="#070809", paper="#0a0b0c")
_CSS_COLOURS = {
    SCREEN.ink: "currentColor",
    SCREEN.muted: "var(--muted)",
    SCREEN.line: "var(--line)",
    SCREEN.paper: "var(--card)",
}
PAPER = Theme(ink="#1c2126", muted="#5c6670", line="#dfe3e7", paper="#ffffff")

ACCENT = "#3b7dd8"
GOOD = "#1a9a72"
BAD = "#d1495b"
NEUTRAL = "#8a929b"

Draw = Callable[[Any, Theme], None]
"""Fills a matplotlib figure."""


def draw_svg(name: str, label: str, size: tuple[float, float], draw: Draw) -> str:
    """A plot as SVG to be placed in HTML.

    Args:
        name: what ids in the SVG begin with; unique in the page.
        label: the plot in one sentence, for those who cannot see it.
        size: width and height in inches; text has its natural size at 100 px an inch.
        draw: fills the figure.

    Raises:
        BackendUnavailableError: matplotlib is missing.
    """
    drawn = io.StringIO()
    # No metadata: it would hold the time and name servers.
    _draw(size, draw, SCREEN, drawn, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(drawn.getvalue(), name, label, size)


def save_png(path: Path, size: tuple[float, float], draw: Draw) -> None:
    """Write a plot as a PNG on white, in one step.

    Raises:
        BackendUnavailableError: matplotlib is missing.
    """
    drawn = io.BytesIO()
    _draw(size, draw, PAPER, drawn, format="png", dpi=160, facecolor=PAPER.paper, metadata={"Software": None})
    write_atomically(path, drawn.getvalue())


def require_matplotlib() -> Any:
    """The `matplotlib` module.

    Raises:
        BackendUnavailableError: it is missing.
    """
    try:
        import_module("matplotlib.figure")
        return import_module("matplotlib")
    except ImportError as error:
        msg = f"plots need matplotlib, which cannot be imported ({error}); install it with blockexport[plot]"
        raise BackendUnavailableError(msg) from error


def format_power(value: float, _position: int | None = None) -> str:
    """A tick of a logarithmic axis, such as 1e-06; matplotlib's own would be markup that `_settings` turns off."""
    return f"{value:.0e}"


def _draw(size: tuple[float, float], draw: Draw, theme: Theme, out: Any, **options: Any) -> None:
    matplotlib = require_matplotlib()
    # A figure of its own and settings of its own: pyplot's are shared by the whole process.
    with matplotlib.rc_context(_settings(theme)):
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        draw(figure, theme)
        figure.savefig(out, **options)


def _settings(theme: Theme) -> dict[str, Any]:
    return {
        "font.family": ["DejaVu Sans"],
        "font.size": 9,
        "text.color": theme.ink,
        # Names of models and tasks may hold dollar signs.
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "blockexport",
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "axes.edgecolor": theme.muted,
        "axes.labelcolor": theme.ink,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.titlecolor": theme.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.line,
        "grid.linewidth": 0.8,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "lines.linewidth": 1.6,
        "lines.markersize": 5,
        "errorbar.capsize": 2,
    }


def _inline(svg: str, name: str, label: str, size: tuple[float, float]) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # A style sheet in an SVG reaches the whole page; the page's own has these two rules for plots.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for stand_in, colour in _CSS_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    _, _, body = svg.partition(">")
    width, height = (round(inches * 72, 3) for inches in size)
    return (
        f'<svg class="plot" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}" '
        f'style="--full: {round(size[0] * 100)}px">{body.strip()}'
    )
