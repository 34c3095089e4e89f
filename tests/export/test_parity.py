"""The parity gate must let a right engine through and stop every kind of wrong one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from blockexport.backends.onnxruntime.decoder import OrtDecoder
from blockexport.backends.onnxruntime.single_pass import OrtSinglePass
from blockexport.bundle.manifest import ParityRecord
from blockexport.core.masks import DepthMask
from blockexport.core.parity import ParityCase
from blockexport.export.parity import check_decoder, check_single_pass
from blockexport.masking.oracle import Oracle

KEPT = (1, 3)
MASK = DepthMask.from_kept(KEPT, 4)


@pytest.fixture(scope="module")
def cases(lowered: Callable) -> tuple[ParityCase, ...]:
    return Oracle(lowered("llama").model, seed=1).record(MASK)


@pytest.fixture(scope="module")
def good(lowered: Callable, tmp_path_factory: pytest.TempPathFactory) -> OrtDecoder:
    return OrtDecoder(lowered("llama").write(tmp_path_factory.mktemp("parity") / "good", *KEPT), threads=1)


def layout(lowered: Callable, kept: tuple[int, ...] = KEPT) -> dict[int, tuple[int, int]]:
    return {block: lowered("llama").layout[block] for block in kept}


def verdicts(records: tuple[ParityRecord, ...]) -> dict[str, bool]:
    return {record.check: record.passed for record in records}


def test_a_right_engine_passes_every_check(good: OrtDecoder, cases: Any, lowered: Callable) -> None:
    records = check_decoder(good, layout(lowered), cases)
    assert verdicts(records) == {"prefill": True, "decode": True, "padded": True, "chunked": True}
    assert all(0 < record.max_abs_err <= record.tolerance < 1e-4 for record in records)
    assert all(record.tokens_equal for record in records)
    assert all(case.inputs["continuation"].shape[1] >= 8 for case in cases if case.check in ("decode", "padded"))


@pytest.mark.parametrize("name", ["self_attn.q_proj", "mlp.down_proj", "input_layernorm"])
def test_one_weight_a_percent_off_is_caught(name: str, cases: Any, lowered: Callable, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, NDArray[Any]]) -> None:
        weight = tensors[f"model.layers.3.{name}.weight"].reshape(-1)
        weight[np.abs(weight).argmax()] *= 1.01

    engine = OrtDecoder(lowered("llama").write(tmp_path / "spoilt", *KEPT, change=spoil), threads=1)
    found = verdicts(check_decoder(engine, layout(lowered), cases))
    # A neuron may be silent at the one token that `prefill` looks at.
    assert not any(passed for check, passed in found.items() if check != "prefill")


def test_an_engine_of_another_mask_is_caught(cases: Any, lowered: Callable, tmp_path: Path) -> None:
    kept = (0, 3)
    engine = OrtDecoder(lowered("llama").write(tmp_path / "other", *kept), threads=1)
    assert not any(verdicts(check_decoder(engine, layout(lowered, kept), cases)).values())


class Wrapped:
    """A right engine that something goes wrong with: before each step, or with what it gives."""

    def __init__(self, runner: Any, *, before: Any = None, after: Any = None) -> None:
        self._runner, self._before, self._after = runner, before, after
        self._bound: Any = None
        self._rows: Any = None

    def bind(self, rows: Any) -> "Wrapped":
        self._bound, self._rows = self._runner.bind(rows), rows
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bound, name)

    def step(self, inputs: Any) -> NDArray[np.float32]:
        if self._before is not None:
            self._before(self._rows, inputs)
        logits = self._bound.step(inputs)
        return logits if self._after is None else self._after(np.array(logits))


def test_an_engine_that_forgets_is_caught_where_it_has_to_remember(
    good: OrtDecoder, cases: Any, lowered: Callable
) -> None:
    def forget(rows: Any, _inputs: Any) -> None:
        for pair in rows.values():
            for array in pair:
                array[:, :, 0] = 0

    found = verdicts(check_decoder(Wrapped(good, before=forget), layout(lowered), cases))
    assert found == {"prefill": True, "decode": False, "padded": False, "chunked": False}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_caught(bad: float, good: OrtDecoder, cases: Any, lowered: Callable) -> None:
    def spoil(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        logits[0, 0, 5] = bad
        return logits

    records = check_decoder(Wrapped(good, after=spoil), layout(lowered), cases)
    assert not any(record.passed for record in records)
    assert all(record.max_abs_err == np.inf for record in records)


def test_another_token_is_caught_even_where_no_logit_was_recorded(
    good: OrtDecoder, cases: Any, lowered: Callable
) -> None:
    unrecorded = 50
    narrow = tuple(
        ParityCase(
            case.check,
            case.inputs,
            case.expected[:, :, case.columns != unrecorded],
            case.argmax,
            case.columns[case.columns != unrecorded],
            case.tolerance,
        )
        for case in cases
    )

    def prefer(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        logits[:, :, unrecorded] = logits.max() + 1
        return logits

    records = check_decoder(Wrapped(good, after=prefer), layout(lowered), narrow)
    assert all(record.max_abs_err <= record.tolerance for record in records)
    assert not any(record.tokens_equal or record.passed for record in records)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "vit"])
def test_single_pass_models(architecture: str, lowered: Callable, tmp_path: Path) -> None:
    level = lowered(architecture)
    cases = Oracle(level.model, seed=1).record(MASK)
    right = OrtSinglePass(level.write(tmp_path / "right", *KEPT), threads=1)
    assert verdicts(check_single_pass(right, cases)) == {"forward": True}
    wrong = OrtSinglePass(level.write(tmp_path / "wrong", 0, 3), threads=1)
    assert verdicts(check_single_pass(wrong, cases)) == {"forward": False}
