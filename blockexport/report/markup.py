"""HTML in small pieces; all text from outside goes through `escape`."""

import html
import math
from collections.abc import Iterable, Sequence


def escape(text: object) -> str:
    """Text that HTML shows as it is, in attributes too."""
    return html.escape(str(text), quote=True)


def number(value: float, *, digits: int = 3, unit: str = "") -> str:
    """A figure rounded for people; the element's `value` holds it exactly.

    Args:
        value: any number.
        digits: significant ones.
        unit: written behind.
    """
    behind = f"\u00a0{escape(unit)}" if unit else ""
    return f'<data value="{value!r}">{round_text(value, digits)}</data>{behind}'


def round_text(value: float, digits: int = 3) -> str:
    """Significant digits without an exponent where people need none."""
    if value == 0 or not math.isfinite(value) or not 1e-3 <= abs(value) < 1e7:
        return f"{value:.{digits}g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def with_error(value: float, stderr: float) -> str:
    """A figure and its standard error, both to the error's first two digits, and at most four decimals."""
    decimals = 3 if stderr <= 0 else min(4, max(0, 1 - math.floor(math.log10(stderr))))
    return f'<data value="{value!r}">{value:.{decimals}f}</data> <span class="soft">± {stderr:.{decimals}f}</span>'


def bytes_text(size: int) -> str:
    """A size in the unit that gives a short number."""
    for unit, factor in (("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{round_text(size / factor)}\u00a0{unit}"
    return f"{size}\u00a0B"


def count_bytes(size: int) -> str:
    """`bytes_text` in an element whose `value` holds the bytes."""
    return f'<data value="{size}">{bytes_text(size)}</data>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "") -> str:
    """A table of cells that are HTML already; the first column names the row."""
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return f'<div class="wide"><table>{said}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def section(identity: str, title: str, *parts: str) -> str:
    """A part of the page with a heading."""
    return f'<section id="{escape(identity)}"><h2>{escape(title)}</h2>{"".join(parts)}</section>'


def paragraph(text: str) -> str:
    """A paragraph of HTML."""
    return f"<p>{text}</p>"


def figure(plot: str, caption: str) -> str:
    """A plot with what to see in it, both HTML."""
    return f'<figure><div class="wide">{plot}</div><figcaption>{caption}</figcaption></figure>'


def folded(title: str, content: str) -> str:
    """Details that one has to ask for."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def missing(what: str, command: str) -> str:
    """What is not in the report, and the command that adds it."""
    return f'<p class="missing"><strong>Not in this report:</strong> {escape(what)}. <code>{escape(command)}</code></p>'


def verdict(passed: bool) -> str:
    """Passed or failed, told by word and mark, not by colour alone."""
    return '<span class="good">✓ passed</span>' if passed else '<span class="bad">✗ failed</span>'
