from typing import Any

import pytest

from blockexport.errors import RequestError
from blockexport.routing.request import RoutingRequest


@pytest.mark.parametrize(
    "sizes",
    [
        {"prompt_tokens": -1},
        {"prompt_tokens": 1, "new_tokens": -1},
        {"prompt_tokens": 1, "batch": 0},
        {"prompt_tokens": 1.5},
        {"prompt_tokens": True},
        {"prompt_tokens": "8"},
        {"prompt_tokens": 1, "new_tokens": float("nan")},
    ],
)
def test_sizes_are_whole_and_not_negative(sizes: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="give a whole number"):
        RoutingRequest(**sizes)


@pytest.mark.parametrize(("new_tokens", "steps"), [(0, 0), (1, 0), (2, 1), (32, 31)])
def test_n_tokens_cost_n_minus_one_steps(new_tokens: int, steps: int) -> None:
    assert RoutingRequest(8, new_tokens).decode_steps == steps
