"""What it costs to go up in the middle of a text, exactly and approximately."""

from blockexport.report.markup import escape, missing, paragraph, section, table, with_error
from blockexport.report.material import Material
from blockexport.report.switching import SwitchedPair

_TITLE = "Going up in the middle of a text"


def render(material: Material) -> str:
    """A row for each step up and figure."""
    if material.manifest.model.kind != "decoder":
        return section("switching", _TITLE, paragraph("A single pass has one level from beginning to end."))
    switching = material.switching
    if switching is None:
        command = f"blockexport report {material.folder} --switch-data DATA"
        return section("switching", _TITLE, missing("the quality of masked switches, it takes texts", command))
    rows = [row for pair in switching.pairs for row in _rows(pair)]
    caption = (
        f"{switching.num_samples} texts of {escape(switching.data)}: one level reads the first half, the next deeper "
        "one the rest. Reprefill runs the missing tokens at the deeper level and is exact; masked passes over them, "
        "costs nothing, is approximate, and is used only where it is asked for. ± is one standard error."
    )
    head = ("levels", "figure", "better", "no switch", "reprefill", "masked")
    return section("switching", _TITLE, table(head, rows, caption=caption))


def _rows(pair: SwitchedPair) -> list[list[str]]:
    rows = []
    for name, stays in pair.stays.metrics.items():
        if "/" in name:
            continue
        found = [stays, pair.reprefill.metrics[name], pair.masked.metrics[name]]
        better = "higher" if stays.higher_is_better else "lower"
        levels = escape(f"{pair.before}, then {pair.after}")
        rows.append([levels, escape(name.replace("_", " ")), better, *(with_error(f.value, f.stderr) for f in found)])
    return rows
