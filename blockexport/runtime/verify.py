"""Is a bundle what was built, and does it still do what was proved? Needs neither torch nor the checkpoint."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import util
from pathlib import Path
from typing import Any, Literal

from blockexport.backends.onnxruntime.operators import STOCK, choose_operators
from blockexport.bundle.layout import PARITY_FILE, VISION_PREFIX
from blockexport.bundle.manifest import ParityRecord
from blockexport.bundle.reader import Bundle, check_bundle, open_bundle
from blockexport.core.parity import ParityCase
from blockexport.errors import BackendUnavailableError, BundleError
from blockexport.runtime import compiled
from blockexport.runtime.engines import Engines, LevelFile
from blockexport.runtime.proof import check_level, recorded_cases

Status = Literal["ok", "failed", "not run"]

_DAMAGED = "the bundle is damaged, so nothing in it is opened"


@dataclass(frozen=True, slots=True)
class VerifiedCheck:
    """One thing looked at.

    Attributes:
        id: what was looked at, such as `sha256:weights.safetensors`, `parity:d6:decode` or `audit:d6`.
        status: `not run` when this host cannot look, or when it would be unsafe to.
        why: what was found, or why it was not looked at; "" for files that are as they should be.
    """

    id: str
    status: Status
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """The check as the command line prints it."""
        return asdict(self)


def is_verified(checks: list[VerifiedCheck]) -> bool:
    """Whether nothing failed."""
    return not any(check.status == "failed" for check in checks)


def verify_bundle(path: Path) -> list[VerifiedCheck]:
    """Check the files, then hold every level to the recorded answers of the eager reference, then audit every graph.

    Args:
        path: the bundle's folder.

    Raises:
        BundleError: there is no folder to look at.
    """
    checks = [VerifiedCheck(check.id, "ok" if check.ok else "failed", check.why) for check in check_bundle(path)]
    if not is_verified(checks):
        return [*checks, VerifiedCheck("parity", "not run", _DAMAGED), VerifiedCheck("audit", "not run", _DAMAGED)]
    # The digests were compared a moment ago.
    bundle = open_bundle(path, verify=False)
    return [*checks, *_parity(bundle), *_audits(bundle)]


def _parity(bundle: Bundle) -> Iterator[VerifiedCheck]:
    file = bundle.folder / PARITY_FILE
    recorded = recorded_cases(file) if file.is_file() else {}
    stock = Engines.of_bundle(bundle)
    for name, level in bundle.manifest.all_levels.items():
        cases = recorded.get(name, ())
        missing = {record.check for record in level.parity} - {case.check for case in cases}
        if missing or not cases:
            why = f"no recorded answers for {', '.join(sorted(missing)) or 'this level'} in {PARITY_FILE}; rebuild it"
            yield VerifiedCheck(f"parity:{name}", "failed", why)
            continue
        yield from _level_parity(_part(stock, name), level.name, cases, f"parity:{name}")
    yield from _native_parity(bundle, recorded)
    yield from _compiled_parity(bundle, recorded)


def _compiled_parity(bundle: Bundle, recorded: Mapping[str, tuple[ParityCase, ...]]) -> Iterator[VerifiedCheck]:
    levels = bundle.manifest.all_levels
    if all(engine.backend != compiled.BACKEND for level in levels.values() for engine in level.engines):
        return
    try:
        code = compiled.open_packages(bundle)
    except (BackendUnavailableError, BundleError) as error:
        yield VerifiedCheck("parity:compiled", "not run", str(error))
        return
    # Nothing to fall back on: what is looked at is the package.
    files = {name: LevelFile(path, levels[name].kept, opener=code.opener) for name, path in code.paths.items()}
    engines = Engines(bundle.manifest.model, files)
    for name in files:
        yield from _level_parity(engines, name, recorded.get(name, ()), f"parity:{name}:compiled")


def _native_parity(bundle: Bundle, recorded: Mapping[str, tuple[ParityCase, ...]]) -> Iterator[VerifiedCheck]:
    levels = bundle.manifest.all_levels
    if all(engine.target == STOCK.target for level in levels.values() for engine in level.engines):
        return
    try:
        operators = choose_operators("native")
    except BackendUnavailableError as error:
        yield VerifiedCheck("parity:native", "not run", str(error))
        return
    native = Engines.of_bundle(bundle, operators=operators)
    for name, level in levels.items():
        part = _part(native, name)
        if part.operators(level.name) == "native" and name in recorded:
            yield from _level_parity(part, level.name, recorded[name], f"parity:{name}:native")


def _part(engines: Engines, name: str) -> Engines:
    """The engines that a name of `Manifest.all_levels` belongs to."""
    if not name.startswith(VISION_PREFIX):
        return engines
    assert engines.vision is not None
    return engines.vision


def _level_parity(
    engines: Engines, level: str, cases: tuple[ParityCase, ...], identifier: str
) -> Iterator[VerifiedCheck]:
    try:
        records = check_level(engines, level, cases)
    except BackendUnavailableError as error:
        yield VerifiedCheck(identifier, "not run", str(error))
        return
    except Exception as error:  # noqa: BLE001  (whatever stops an engine, the level cannot serve on this host)
        yield VerifiedCheck(identifier, "failed", " ".join(f"the engine does not run: {error}".split()))
        return
    for record in records:
        yield VerifiedCheck(f"{identifier}:{record.check}", "ok" if record.passed else "failed", _found(record))


def _found(record: ParityRecord) -> str:
    text = f"max abs error {record.max_abs_err:.3g}, allowed {record.tolerance:.3g}"
    if record.tokens_equal is not None:
        text += ", greedy tokens " + ("identical" if record.tokens_equal else "differ")
    return text


def _audits(bundle: Bundle) -> Iterator[VerifiedCheck]:
    if util.find_spec("onnx") is None:
        yield VerifiedCheck("audit", "not run", "package onnx, which reads the graphs, is missing; install it")
        return
    from blockexport.export.audit import audit  # noqa: PLC0415  (onnx is not part of a serving host)

    spec = bundle.manifest.model
    for name, level in bundle.manifest.all_levels.items():
        part = spec.vision_side if name.startswith(VISION_PREFIX) else spec
        assert part is not None
        for engine in level.engines:
            if not engine.path.endswith(".onnx"):
                continue
            findings = audit(bundle.folder / engine.path, level.mask(part.num_blocks), part.block_path)
            status: Status = "failed" if findings else "ok"
            why = "; ".join(findings) or "no trace of a skipped block"
            own = "" if engine.target == STOCK.target else f":{engine.target}"
            yield VerifiedCheck(f"audit:{name}{own}", status, why)
