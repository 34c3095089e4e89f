"""The ladder as a table: one level a row, with the blocks it keeps drawn."""

from blockexport.bundle.manifest import LevelEntry
from blockexport.core.precision import FP32
from blockexport.report.markup import escape, number, paragraph, section, table, with_error
from blockexport.report.material import Material
from blockexport.report.sections.summary import speed_ratio

_NONE = '<span class="soft">not measured</span>'
_HEADS = {"prefill": "prompt ms", "decode": "ms per token", "forward": "ms per pass"}

# Widest drawing of a level's blocks; boxes of models with very many get narrower.
_STRIP_PX = 320


def render(material: Material) -> str:
    """Depth, kept blocks, quality, latency, speed and parity of every level."""
    head = ["level", "depth", "blocks kept", *(escape(name.replace("_", " ")) for name in material.metrics)]
    for phase in material.phases:
        head += [f"{_HEADS[phase]} p50", "p95"]
    head += ["speed", "worst error of allowed"]
    rows = [_row(material, level) for level in material.manifest.levels]
    notes = "".join(f"<li>{escape(note)}</li>" for note in material.manifest.notes)
    return section(
        "ladder",
        "Depth ladder",
        table(head, rows),
        paragraph(f'<span class="soft">{_reading(material)}</span>'),
        f"<ul class='soft'>{notes}</ul>" if notes else "",
    )


def _row(material: Material, level: LevelEntry) -> list[str]:
    figures = material.quality(level)
    stored = f' <span class="soft">{level.precision}</span>' if level.precision != FP32 else ""
    cells = [escape(level.name) + stored, str(level.depth), strip(level, material.manifest.num_blocks)]
    cells += [with_error(figures[name].value, figures[name].stderr) for name in material.metrics]
    for phase in material.phases:
        point = material.point(level.name, phase)
        cells += [_NONE, _NONE] if point is None else [number(point.summary.p50_ms), number(point.summary.p95_ms)]
    ratio = speed_ratio(material, level.name)
    return [*cells, _NONE if ratio is None else f"{number(ratio)}&times;", _worst(level)]


def strip(level: LevelEntry, num_blocks: int) -> str:
    """One small box for each block, filled where it is kept."""
    kept = set(level.kept)
    boxes = "".join(
        f'<i class="{"kept" if i in kept else "skipped"}" title="block {i} {"kept" if i in kept else "skipped"}"></i>'
        for i in range(num_blocks)
    )
    told = f"kept blocks: {', '.join(map(str, level.kept))}"
    width = min(_STRIP_PX, 10 * num_blocks)
    return f'<span class="strip" role="img" aria-label="{told}" style="width: {width}px">{boxes}</span>'


def _worst(level: LevelEntry) -> str:
    if not level.parity:
        return _NONE
    worst = max(level.parity, key=lambda record: record.max_abs_err / max(record.tolerance, 1e-300))
    return f"{number(worst.max_abs_err, digits=2)} of {number(worst.tolerance, digits=2)}"


def _reading(material: Material) -> str:
    said = (
        "Blocks are numbered from the left, from input to output. Quality was measured on the engines, ± is one "
        "standard error. "
    )
    points = [material.point(material.manifest.levels[0].name, phase) for phase in material.phases]
    for point in points:
        if point is None:
            return said
        if point.phase == "prefill":
            said += f"Prompt: {point.new_tokens} tokens. "
        elif point.phase == "decode":
            said += f"Token: one step behind {point.kv_tokens} tokens in the cache. "
    return said + "Batch 1; speed is the ratio of medians in the last phase, against the deepest level."
