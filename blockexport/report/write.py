"""The report as one file that needs nothing else: no server, no network, no script."""

from collections.abc import Callable
from pathlib import Path

from blockexport.bundle.disk import write_errors
from blockexport.core.jsonio import write_atomically
from blockexport.core.study import Study
from blockexport.report.markup import escape
from blockexport.report.material import Material, gather
from blockexport.report.sections import (
    depth,
    importance,
    ladder,
    latency,
    metrics,
    parity,
    provenance,
    sizes,
    summary,
)
from blockexport.report.sections import (
    switching as going_up,
)
from blockexport.report.style import require_matplotlib
from blockexport.report.switching import Switching

_SECTIONS: dict[str, tuple[str, Callable[[Material], str]]] = {
    "ladder": ("Depth ladder", ladder.render),
    "depth": ("Quality against depth", depth.render),
    "latency": ("Quality against latency", latency.render),
    "importance": ("Importance per block", importance.render),
    "switching": ("Going up", going_up.render),
    "parity": ("Parity", parity.render),
    "sizes": ("Sizes", sizes.render),
    "metrics": ("Gates and figures", metrics.render),
    "provenance": ("Provenance", provenance.render),
}


def write_report(
    bundle_path: Path, out: Path, *, study: Study | None = None, switching: Switching | None = None
) -> Path:
    """Write what a bundle is worth as one self-contained HTML file, in one step.

    What the bundle does not hold, such as a profile of this host or a study, is named with the command that adds it.

    Args:
        bundle_path: the bundle; it is verified, and opened in fresh processes to measure its memory.
        out: the HTML file.
        study: strategies compared on the bundle's model; None for `study.json` in the bundle, or else for the scores
            in its `scores.json`.
        switching: what `measure_switching` found; None to say how it is measured.

    Returns:
        `out`.

    Raises:
        BackendUnavailableError: matplotlib is missing.
        BundleError: the bundle cannot be opened, or the file cannot be written.
        ConfigError: the study or the scores are unreadable or of another model.
    """
    require_matplotlib()
    page = render_page(gather(Path(bundle_path), study, switching))
    with write_errors(Path(out)):
        write_atomically(Path(out), page)
    return Path(out)


def render_page(material: Material) -> str:
    """The whole HTML document."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{identity}">{escape(title)}</a>' for identity, (title, _) in _SECTIONS.items())
    body = "\n".join(render(material) for _, render in _SECTIONS.values())
    title = escape(f"blockexport report: {material.manifest.model.name}")
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    lines = (
        "<!DOCTYPE html>",
        '<html lang="en">',
        f"<head>{meta}<title>{title}</title><style>\n{style}</style></head>",
        f"<body><main>{summary.render(material)}<nav>{links}</nav>\n{body}</main></body>",
        "</html>",
        "",
    )
    return "\n".join(lines)
