"""The rows of `bench_peers.py` as Markdown, and as a picture."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from contenders import OURS

from blockexport.report.style import ACCENT, BAD, GOOD, NEUTRAL, Theme, save_png

_COLUMNS = (
    "contender",
    "format",
    "decode, tokens/s",
    "ours / this",
    "prefill, ms",
    "this / ours",
    "peak PSS, MB",
    "disk, MB",
    "same first tokens",
)
# Colour by peer; formats of one peer differ in their marks.
_COLOURS = {"ours": GOOD, "hf": NEUTRAL, "genai": ACCENT, "ov": "#8a63d2", "llama": BAD}
_MARKS = "os^D"


def to_markdown(result: dict[str, Any]) -> str:
    """One table for each precision and depth: medians and ranges; a ratio above 1 means that ours is faster."""
    gb_s = result["read_gb_s"]
    conditions = (
        f"{result['model']}; batch 1, {result['threads']} threads, {result['prompt_tokens']} prompt tokens and "
        f"{result['new_tokens']} new ones; median [least-most] of {result['num_rounds']} interleaved rounds. "
        f"Memory reads {gb_s['median']:.0f} [{gb_s['min']:.0f}-{gb_s['max']:.0f}] GB/s."
    )
    lines = [conditions]
    for precision, depth in dict.fromkeys((row["precision"], row["depth"]) for row in result["rows"]):
        rows = [row for row in result["rows"] if (row["precision"], row["depth"]) == (precision, depth)]
        lines += ["", f"### {precision}, {depth} blocks", "", _line(_COLUMNS), _line("---" for _ in _COLUMNS)]
        lines += [_line(_cells(row, result["num_rounds"])) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(row: dict[str, Any], num_rounds: int) -> list[str]:
    if "not_run" in row:
        return [row["name"], row["format"], f"not run: {row['not_run']}", *[""] * (len(_COLUMNS) - 3)]
    same = row.get("same_first_tokens")
    return [
        row["name"],
        row["settings"].get("precision", row["format"]),
        _range(row["decode_tokens_per_s"], 1),
        _range(row.get("decode_ours_to_this"), 2),
        _range(row["prefill_ms"], 0),
        _range(row.get("prefill_this_to_ours"), 2),
        f"{row['peak_pss_bytes'] / 1e6:.0f}",
        f"{row['disk_bytes'] / 1e6:.0f}" + (" (all depths)" if row["name"] == OURS else ""),
        "" if same is None else f"{same} of {num_rounds}",
    ]


def _range(summary: dict[str, float] | None, digits: int) -> str:
    if summary is None:
        return ""
    return f"{summary['median']:.{digits}f} [{summary['min']:.{digits}f}-{summary['max']:.{digits}f}]"


def save_plot(path: Path, result: dict[str, Any]) -> None:
    """Decode rate against depth, a panel for each precision."""
    rows = [row for row in result["rows"] if "not_run" not in row]
    precisions = list(dict.fromkeys(row["precision"] for row in rows))

    def draw(figure: Any, _theme: Theme) -> None:
        for axes, precision in zip(figure.subplots(1, len(precisions), squeeze=False)[0], precisions, strict=True):
            _draw_panel(axes, [row for row in rows if row["precision"] == precision])
            axes.set_title(precision)
        figure.axes[0].set_ylabel("decode, tokens/s")

    if precisions:
        save_png(path, (4 * len(precisions), 4.8), draw)


def _draw_panel(axes: Any, rows: list[dict[str, Any]]) -> None:
    seen: dict[str, int] = {}
    for name in dict.fromkeys(row["name"] for row in rows):
        own = sorted((row for row in rows if row["name"] == name), key=lambda row: int(row["depth"]))
        rates = [row["decode_tokens_per_s"] for row in own]
        errors = [[r["median"] - r["min"] for r in rates], [r["max"] - r["median"] for r in rates]]
        peer = own[0]["peer"]
        mark = _MARKS[seen.setdefault(peer, -1) + 1]
        seen[peer] += 1
        axes.errorbar(
            [row["depth"] for row in own],
            [rate["median"] for rate in rates],
            errors,
            marker=mark,
            color=_COLOURS[peer],
            label=name,
            zorder=3 if name == OURS else 2,
        )
    axes.set_xticks(sorted({row["depth"] for row in rows}))
    axes.set_xlabel("blocks")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))
