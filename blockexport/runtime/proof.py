"""Does an engine give the answers that were recorded when it was built? Asked of operators that this host compiled."""

from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from blockexport.bundle.layout import PARITY_FILE, VISION_PREFIX
from blockexport.bundle.manifest import ParityRecord
from blockexport.bundle.reader import Bundle
from blockexport.core.parity import ParityCase, unpack_cases
from blockexport.export.parity import check_decoder, check_single_pass
from blockexport.runtime.engines import Engines, Proof

# The cheapest case of each kind of model. A wrong operator is wrong everywhere; all cases are `blockexport verify`.
_ENOUGH = ("prefill", "forward")


def recorded_cases(path: Path) -> dict[str, tuple[ParityCase, ...]]:
    """The eager reference's answers by level, as a bundle holds them."""
    with safe_open(path, framework="numpy") as file:
        return unpack_cases({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118


def check_level(engines: Engines, level: str, cases: Sequence[ParityCase]) -> tuple[ParityRecord, ...]:
    """Run recorded cases through a level of any kind of model.

    Raises:
        BundleError: this host cannot open the level's engine.
    """
    if engines.spec.kind == "decoder":
        side = engines.vision
        vision = None if side is None else side.single_pass(side.names[0])
        return check_decoder(engines.decoder(level), engines.layout(level), cases, vision, engines.spec.vision)
    return check_single_pass(engines.single_pass(level), cases)


def proof_of(bundle: Bundle) -> Proof:
    """A proof by one recorded answer for each level; levels without one are not trusted."""
    cases: dict[str, tuple[ParityCase, ...]] = {}

    def prove(engines: Engines, level: str) -> bool:
        if not cases:
            cases.update(recorded_cases(bundle.folder / PARITY_FILE))
        is_side = engines.spec.kind == "vision" and engines.spec.vision is not None
        name = f"{VISION_PREFIX}{level}" if is_side else level
        chosen = [case for case in cases.get(name, ()) if case.check in _ENOUGH]
        records = check_level(engines, level, chosen)
        return bool(records) and all(record.passed for record in records)

    return prove
