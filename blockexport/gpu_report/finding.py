"""What a check found, and what a check is."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["pass", "fail", "not_run"]
Tier = Literal["cpu", "gpu"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One verdict.

    Attributes:
        id: what was looked at.
        tier: what it took: `gpu`, or `cpu` for what says nothing of a GPU.
        status: `not_run` is no verdict.
        why: the reason of a failure, or of there being no verdict.
        metrics: figures, with their units in their names.
    """

    id: str
    tier: Tier
    status: Status
    why: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the report holds it; JSON knows no infinity and no NaN."""
        value = asdict(self)
        value["metrics"] = {key: _plain(entry) for key, entry in self.metrics.items()}
        return value


def verdict(identifier: str, tier: Tier, failures: list[str], metrics: dict[str, Any]) -> Finding:
    """Passed if nothing failed."""
    return Finding(identifier, tier, "fail" if failures else "pass", "; ".join(failures), metrics)


Run = Callable[[], Iterator[Finding]]
"""Raises BackendUnavailableError for what this host does not have."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        name: of its file, and in front of the ids of what it finds.
        tier: what it takes.
        limit_s: it is ended after so many seconds; what it found by then counts.
        run: finds something.
    """

    name: str
    tier: Tier
    limit_s: float
    run: Run


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
