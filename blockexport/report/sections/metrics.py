"""Every gate's verdict and every figure, those of single tasks included."""

from blockexport.report.markup import escape, missing, number, section, table, verdict, with_error
from blockexport.report.material import Material

_TITLE = "Gates and figures"


def render(material: Material) -> str:
    """Two tables: quality by level and task, and the gates."""
    return section("metrics", _TITLE, _quality(material), _gates(material))


def _quality(material: Material) -> str:
    levels = material.manifest.levels
    names = list(dict.fromkeys(name for level in levels for name in material.quality(level)))
    if not names:
        command = f"blockexport build MODEL --ladder LADDER --data DATA --out {material.folder}"
        return missing("quality, the build had no data to measure it on", command)
    rows = []
    for name in names:
        found = [material.quality(level).get(name) for level in levels]
        first = next(figure for figure in found if figure is not None)
        better = "higher" if first.higher_is_better else "lower"
        cells = ["-" if figure is None else with_error(figure.value, figure.stderr) for figure in found]
        rows.append([escape(_spoken(name)), better, str(first.num_samples), *cells])
    head = ["figure", "better", "samples", *(escape(level.name) for level in levels)]
    return table(head, rows, caption="Quality, measured on the engines; ± is one standard error")


def _spoken(name: str) -> str:
    metric, _, group = name.partition("/")
    return f"{metric.replace('_', ' ')}: {group}" if group else metric.replace("_", " ")


def _gates(material: Material) -> str:
    rows = []
    for level in material.manifest.levels:
        for record in level.parity:
            tokens = {None: "-", True: "identical", False: "differ"}[record.tokens_equal]
            rows.append(
                [
                    escape(f"{level.name}: parity {record.check}"),
                    verdict(record.passed),
                    number(record.max_abs_err),
                    number(record.tolerance),
                    tokens,
                ]
            )
        rows.append([escape(f"{level.name}: audit"), verdict(passed=True), "-", "-", "-"])
    caption = "Gates at build time; a build that fails the audit leaves no bundle, and blockexport verify repeats both"
    return table(("gate", "verdict", "largest error", "allowed", "greedy tokens"), rows, caption=caption)
