"""Budgets as requests carry them: in headers, or in the field `blockexport` of the body."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from blockexport.core.latency import LatencyBudget
from blockexport.routing.contract import Contract
from blockexport.server.problems import bad_request

_MAX_MS = 86_400_000.0
_Milliseconds = Annotated[float, Field(gt=0, le=_MAX_MS)]

HEADERS = {
    "x-budget-ms": "budget_ms",
    "x-budget-ttft-ms": "ttft_ms",
    "x-budget-tpot-ms": "tpot_ms",
    "x-budget-gap-ms": "gap_ms",
    "x-min-quality": "min_quality",
    "x-task": "task",
    "x-priority": "priority",
    "x-on-miss": "on_miss",
}
_LIMITS = {"budget_ms": "e2e_ms", "ttft_ms": "ttft_ms", "tpot_ms": "tpot_ms", "gap_ms": "gap_ms"}


class Terms(BaseModel):
    """What a caller asks of one answer.

    Attributes:
        budget_ms: time to the last token.
        ttft_ms: time to the first token.
        tpot_ms: mean time of each further token.
        gap_ms: longest time between two tokens.
        min_quality: least quality of any token, 0 to 1.
        task: tag whose quality counts.
        priority: -9 to 9.
        on_miss: `finish` at the shallowest level, `truncate`, or end with an `error`.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    budget_ms: _Milliseconds | None = None
    ttft_ms: _Milliseconds | None = None
    tpot_ms: _Milliseconds | None = None
    gap_ms: _Milliseconds | None = None
    min_quality: float | None = None
    task: Annotated[str, Field(max_length=200)] | None = None
    priority: int = 0
    on_miss: Literal["finish", "truncate", "error"] = "finish"

    def contract(self) -> Contract:
        """The same for the router.

        Raises:
            ConfigError: limits that contradict one another.
        """
        limits = {name: getattr(self, field) for field, name in _LIMITS.items()}
        budget = None if all(limit is None for limit in limits.values()) else LatencyBudget(**limits)
        return Contract(budget, self.min_quality, self.task, self.priority, self.on_miss)


def contract_of(headers: Mapping[str, str], body: Terms | None) -> Contract:
    """The terms of a request.

    Raises:
        ConfigError: limits that contradict one another.
        HTTPException: header and body disagree, or a budget header is unknown.
        ValidationError: a header is no such value.
    """
    unknown = [name for name in headers if name.startswith("x-budget") and name not in HEADERS]
    if unknown:
        msg = f"header {unknown[0]} is unknown; budgets are given by {', '.join(HEADERS)}"
        raise bad_request(msg)
    given = {field: headers[name] for name, field in HEADERS.items() if name in headers}
    told = Terms.model_validate_strings(given).model_dump(include=set(given))
    asked = {} if body is None else body.model_dump(exclude_unset=True)
    for field in told.keys() & asked.keys():
        if told[field] != asked[field]:
            msg = f"{field} is {told[field]} in a header and {asked[field]} in the body; give it once"
            raise bad_request(msg)
    return Terms(**{**asked, **told}).contract()
