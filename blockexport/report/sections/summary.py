"""The head of the report: what this is, and what it allows one to conclude."""

from blockexport.bundle.manifest import LevelEntry
from blockexport.report.markup import escape, number, paragraph, with_error
from blockexport.report.material import Material

# An idle host stays well below this ratio of p95 to median.
_BUSY = 3.0


def render(material: Material) -> str:
    """Title, one paragraph on what was built, and a few sentences that follow from the figures below."""
    manifest = material.manifest
    model = manifest.model
    backends = sorted({engine.backend for level in manifest.levels for engine in level.engines})
    what = (
        f"<strong>{escape(model.name)}</strong> is a {escape(model.architecture)} ({escape(model.kind)}) of "
        f"{manifest.num_blocks} blocks. This bundle holds it at {len(manifest.levels)} depths, chosen by strategy "
        f"<code>{escape(manifest.strategy)}</code>, as engines for {escape(', '.join(backends))} that share one "
        "weight file."
    )
    points = [_level_sentence(material, level) for level in manifest.levels[1:]]
    points = [_reference_sentence(material), *points, _parity_sentence(material), _latency_caveat(material)]
    listed = "".join(f"<li>{point}</li>" for point in points if point)
    return (
        f"<header><p class='kind'>blockexport report</p><h1>{escape(model.name)}</h1>{paragraph(what)}"
        f"<h2>What can be concluded</h2><ul>{listed}</ul></header>"
    )


def _reference_sentence(material: Material) -> str:
    level = material.manifest.levels[0]
    return (
        f"<strong>{escape(level.name)}</strong>, the deepest level{_quality(material, level)}{_time(material, level)}."
    )


def _level_sentence(material: Material, level: LevelEntry) -> str:
    ratio = speed_ratio(material, level.name)
    faster = "" if ratio is None else f", <strong>{number(ratio)}&times;</strong> the speed of the deepest"
    return (
        f"<strong>{escape(level.name)}</strong> keeps {level.depth} of {material.manifest.num_blocks} blocks"
        f"{_quality(material, level)}{_time(material, level)}{faster}."
    )


def _quality(material: Material, level: LevelEntry) -> str:
    figures = material.quality(level)
    said = [f"{escape(name.replace('_', ' '))} {with_error(f.value, f.stderr)}" for name, f in figures.items()]
    main = [text for text, name in zip(said, figures, strict=True) if "/" not in name]
    return f": {', '.join(main)}" if main else ": quality not measured"


def _time(material: Material, level: LevelEntry) -> str:
    point = material.point(level.name, material.phases[-1])
    if point is None:
        return ""
    per = "token" if point.phase == "decode" else "pass"
    return f", {number(point.summary.p50_ms, unit='ms')} per {per}"


def speed_ratio(material: Material, level: str) -> float | None:
    """Speed against the deepest level in the phase that repeats: decode steps, or whole passes."""
    phase = material.phases[-1]
    deepest = material.point(material.manifest.levels[0].name, phase)
    own = material.point(level, phase)
    return None if deepest is None or own is None else deepest.summary.p50_ms / own.summary.p50_ms


def _parity_sentence(material: Material) -> str:
    records = [record for level in material.manifest.levels for record in level.parity]
    if not records:
        return "No engine was compared with the eager reference: do not trust this bundle before that is done."
    failed = sum(not record.passed for record in records)
    if failed:
        return f"<span class='bad'>✗ {failed} of {len(records)} parity checks failed</span>: do not serve this bundle."
    worst = max(records, key=lambda record: record.max_abs_err / max(record.tolerance, 1e-300))
    return (
        f"All {len(records)} comparisons with the masked eager reference passed; the closest to its limit used "
        f"{number(100 * worst.max_abs_err / max(worst.tolerance, 1e-300), digits=2)} % of what is allowed."
    )


def _latency_caveat(material: Material) -> str:
    if material.profile is None:
        return "Nothing can be said of speed: no host was profiled with this build."
    whose = "this host" if material.is_own_profile else "another host than the one that wrote this report"
    cpu = escape(material.profile.host.cpu)
    said = f"Times were measured on {whose} ({cpu}) with one request at a time; other hosts and loads differ."
    points = [material.point(level.name, phase) for level in material.manifest.levels for phase in material.phases]
    spread = max(point.summary.p95_ms / point.summary.p50_ms for point in points if point is not None)
    if spread > _BUSY:
        said += (
            f" <span class='bad'>The host was busy:</span> p95 is up to {number(spread, digits=2)} times the median, "
            "so take times and speeds as rough and profile again on an idle host."
        )
    return said
