"""Where everything in the bundle came from: enough to build it again."""

from collections.abc import Mapping
from typing import Any

from blockexport.core.hardware import HostFingerprint
from blockexport.core.jsonio import dump_json
from blockexport.report.markup import count_bytes, escape, folded, missing, section, table
from blockexport.report.material import Material


def render(material: Material) -> str:
    """Model, data, seeds, versions, hosts, recipe and files."""
    manifest = material.manifest
    facts: list[tuple[str, str]] = [
        ("bundle digest", _code(manifest.digest)),
        ("model digest", _code(manifest.model.digest)),
        ("seeds", _pairs(manifest.seeds)),
        *((f"data: {purpose}", _value(value)) for purpose, value in manifest.data.items()),
        *_study_facts(material),
        ("built with", _pairs(manifest.tools)),
        ("this host", _host(material.host)),
        ("profiled host", _host(material.profile.host) if material.profile else "none"),
    ]
    rows = [(escape(name), value) for name, value in facts]
    return section("provenance", "Provenance", table(("what", "value"), rows), _recipe(material), _files(material))


def _study_facts(material: Material) -> list[tuple[str, str]]:
    study = material.study
    if study is None:
        return []
    described = {"selection": study.selection_data, "test": study.test_data}
    facts = [
        (f"study data: {purpose}", f"{escape(data.name)}, {data.num_samples} samples, {_code(data.digest)}")
        for purpose, data in described.items()
    ]
    return [*facts, ("study seed", str(study.seed))]


def _recipe(material: Material) -> str:
    if not material.manifest.recipe:
        return missing("the recipe, this build was not started from one", "blockexport build RECIPE.toml")
    return f"<h3>Recipe</h3><pre>{escape(dump_json(material.manifest.recipe))}</pre>"


def _files(material: Material) -> str:
    rows = [
        (_code(entry.path), count_bytes(entry.size_bytes), _code(entry.sha256)) for entry in material.manifest.files
    ]
    listed = table(("file", "size", "SHA-256"), rows)
    return folded(f"All {len(rows)} files with their digests", listed)


def _host(host: HostFingerprint) -> str:
    cpus = f"{host.num_cpus} CPU{'s' if host.num_cpus > 1 else ''}"
    features = ", ".join(host.cpu_features) or "no vector extensions known"
    said = f"{host.cpu}, {cpus}, {host.system}, Python {host.python}"
    return f'{escape(said)}<br><span class="soft">{escape(features)}</span><br>{_pairs(host.packages)}'


def _value(value: Any) -> str:
    return _pairs(value) if isinstance(value, Mapping) else _code(value)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{escape(name)} {_code(value)}" for name, value in values.items()) or "none"


def _code(value: object) -> str:
    return f"<code>{escape(value)}</code>"
