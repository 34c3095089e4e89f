"""What a build must satisfy before it may leave a bundle."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from blockexport.bundle.manifest import ParityRecord
from blockexport.core.quality import HIGHER_IS_BETTER, Quality
from blockexport.errors import AuditError, BuildBudgetError, ConfigError, GateError, ParityError, QualityError


@dataclass(frozen=True, slots=True)
class Gates:
    """Demands on a build beyond parity and audit, which are always demanded.

    Attributes:
        min_quality: per metric, what every level must reach (for metrics where lower is better, stay below).
        max_build_seconds: what the build may take; None for no limit.
    """

    min_quality: dict[str, float] = field(default_factory=dict)
    max_build_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.max_build_seconds is not None and not self.max_build_seconds > 0:
            msg = f"max_build_seconds is {self.max_build_seconds}; it must be a positive number of seconds"
            raise ConfigError(msg)
        for metric, bound in self.min_quality.items():
            if metric.partition("/")[0] not in HIGHER_IS_BETTER or not math.isfinite(bound):
                msg = (
                    f"min_quality asks {metric} = {bound}; give a finite number for {', '.join(HIGHER_IS_BETTER)}, "
                    "or for one task such as exact_match/copy"
                )
                raise ConfigError(msg)


@dataclass(frozen=True, slots=True)
class GateResult:
    """One verdict, as the summary and the JUnit file list it."""

    gate: str
    level: str
    passed: bool
    detail: str


class GateKeeper:
    """Collects verdicts, so that a failing build can say everything that is wrong, then refuses.

    Args:
        gates: the recipe's demands.
        clock: monotonic nanoseconds.
    """

    def __init__(self, gates: Gates, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._gates = gates
        self._clock = clock
        self._started = clock()
        self.results: list[GateResult] = []
        self._errors: list[GateError] = []

    @property
    def seconds(self) -> float:
        """Since the build began."""
        return (self._clock() - self._started) / 1e9

    def parity(self, level: str, records: Sequence[ParityRecord]) -> None:
        """Every comparison with the masked eager reference."""
        for record in records:
            detail = f"max abs error {record.max_abs_err:.3g}, allowed {record.tolerance:.3g}"
            if record.tokens_equal is not None:
                detail += ", greedy tokens " + ("identical" if record.tokens_equal else "differ")
            own = "" if record.operators == "stock" else f"{record.operators}:"
            self._note(ParityError, f"parity:{own}{record.check}", level, record.passed, detail)

    def audit(self, level: str, findings: Sequence[str]) -> None:
        """Nothing of a skipped block in the engine."""
        self._note(AuditError, "audit", level, not findings, "; ".join(findings[:3]) or "no trace of a skipped block")

    def quality(self, level: str, quality: Quality | None) -> None:
        """Every figure that the recipe demands."""
        for metric, bound in self._gates.min_quality.items():
            if quality is None or metric not in quality.metrics:
                known = ", ".join(quality.metrics) if quality else "none, give data"
                detail = f"{metric} was not measured (measured: {known})"
                self._note(QualityError, f"quality:{metric}", level, False, detail)
                continue
            figure = quality.metrics[metric]
            relation = "at least" if figure.higher_is_better else "at most"
            detail = f"{metric} is {figure.value:.4g} ± {figure.stderr:.2g}, must be {relation} {bound:g}"
            self._note(QualityError, f"quality:{metric}", level, figure.is_at_least(bound), detail)

    def duration(self) -> None:
        """The time the build took so far."""
        allowed = self._gates.max_build_seconds
        if allowed is not None:
            detail = f"{self.seconds:.1f} s, allowed {allowed:g} s"
            self._note(BuildBudgetError, "duration", "all", self.seconds <= allowed, detail)

    def enforce(self) -> None:
        """Raise the first failure, naming how many there are.

        Raises:
            GateError: a gate said no.
        """
        if self._errors:
            first = self._errors[0]
            more = f" (and {len(self._errors) - 1} more gates failed)" if len(self._errors) > 1 else ""
            msg = f"{first}{more}; no bundle was written"
            raise type(first)(msg)

    def _note(self, error: type[GateError], gate: str, level: str, passed: bool, detail: str) -> None:
        self.results.append(GateResult(gate, level, passed, detail))
        if not passed:
            self._errors.append(error(f"gate {gate} failed for level {level}: {detail}"))
