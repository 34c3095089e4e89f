"""What the bundle takes on disk and in memory."""

from collections.abc import Sequence
from typing import Any

from blockexport.bundle.layout import PARITY_FILE, TOKENIZER_FOLDER
from blockexport.report.markup import bytes_text, count_bytes, escape, figure, folded, missing, section, table
from blockexport.report.material import Material
from blockexport.report.memory import MemoryUse
from blockexport.report.style import ACCENT, GOOD, NEUTRAL, Theme, draw_svg

Bar = tuple[str, int, str]
"""What it is, bytes, colour."""


def render(material: Material) -> str:
    """Files and memory, as bars and as a table."""
    return section("sizes", "Sizes", _files(material), _memory(material))


def _files(material: Material) -> str:
    bars = file_bars(material)
    plot = _bars("files", f"sizes of the bundle's {len(bars)} parts on disk", bars, "MB on disk")
    graphs = sum(size for name, size, _ in bars if name.startswith("graph "))
    share = 100 * graphs / max(1, material.manifest.weights.size_bytes)
    caption = (
        f"The weights lie in the bundle once; the graphs of all {len(material.manifest.levels)} levels together add "
        f"{count_bytes(graphs)}, {share:.1f} % of the weights."
    )
    rows = [(escape(name), count_bytes(size)) for name, size, _ in bars]
    return figure(plot, caption) + folded("Files as a table", table(("part", "size"), rows))


def file_bars(material: Material) -> list[Bar]:
    """Sizes of the weights, of each level's graphs, and of the rest."""
    sizes = {entry.path: entry.size_bytes for entry in material.manifest.files}
    bars: list[Bar] = [("weights, shared by all levels", sizes.pop(material.manifest.weights.path), ACCENT)]
    for level in material.manifest.levels:
        own = sum(sizes.pop(engine.path) for engine in level.engines)
        bars.append((f"graph of {level.name}", own, GOOD))
    parity = sizes.pop(PARITY_FILE, 0)
    tokenizer = sum(sizes.pop(path) for path in list(sizes) if path.startswith(f"{TOKENIZER_FOLDER}/"))
    rest = (("recorded reference answers", parity), ("tokenizer", tokenizer), ("other files", sum(sizes.values())))
    return bars + [(name, size, NEUTRAL) for name, size in rest if size]


def _memory(material: Material) -> str:
    use = material.memory
    if isinstance(use, str):
        return missing(f"memory, {use}", "blockexport report on a Linux host that can run the bundle")
    bars: list[Bar] = [
        ("no level opened", use.none_bytes, NEUTRAL),
        (f"{material.manifest.levels[0].name} opened and run", use.deepest_bytes, ACCENT),
        (f"all {use.num_levels} levels opened and run", use.all_bytes, ACCENT),
    ]
    plot = _bars("memory", "proportional set size with no, one and all levels opened", bars, "MB of PSS")
    rows = [(escape(name), count_bytes(size)) for name, size, _ in bars]
    return figure(plot, _memory_caption(use)) + folded("Memory as a table", table(("process", "PSS"), rows))


def _memory_caption(use: MemoryUse) -> str:
    first = use.deepest_bytes - use.none_bytes
    further = use.all_bytes - use.deepest_bytes
    said = f"Proportional set size of a fresh process each. The deepest level takes {count_bytes(max(0, first))} more"
    if use.num_levels == 1:
        return f"{said}."
    return f"{said}, the other {use.num_levels - 1} together {count_bytes(max(0, further))} on top of that."


def _bars(name: str, label: str, bars: Sequence[Bar], unit: str) -> str:
    def draw(canvas: Any, theme: Theme) -> None:
        axes = canvas.subplots()
        sizes = [size / 1e6 for _, size, _ in bars]
        drawn = axes.barh(range(len(bars)), sizes, color=[colour for *_, colour in bars], height=0.62)
        axes.bar_label(drawn, [bytes_text(size) for _, size, _ in bars], padding=4, color=theme.ink)
        axes.set_yticks(range(len(bars)), [title for title, *_ in bars])
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, max(sizes) * 1.12 or 1)
        axes.set_xlabel(unit)

    return draw_svg(name, label, (8.4, 0.32 * len(bars) + 0.7), draw)
