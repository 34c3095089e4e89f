"""CachedAttention on every path against the reference, against ONNX Runtime's own, and what it must refuse."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from blockexport_kernels.ort_cpu.reference import Rotary, cached_attention

Run = Callable[..., list[np.ndarray]]
EPSILON = 2.0**-24


@dataclass(frozen=True)
class Case:
    batch: int
    seq: int
    heads: int
    kv_heads: int
    head_dim: int
    past: int  # tokens of the longest row before this call
    window: int = -1
    softcap: float = 0.0
    rotated: int = 0

    @property
    def is_prompt(self) -> bool:
        return self.past == 0

    @property
    def first_slots(self) -> list[int]:
        """Rows of a batch have their own lengths, but for a prompt."""
        return [max(0, self.past - row) for row in range(self.batch)]


CASES = [
    Case(1, 1, 14, 2, 64, past=150, rotated=64),  # a decode step
    Case(3, 1, 4, 2, 16, past=70, rotated=8),  # rows of their own lengths, part of a head rotated
    Case(2, 1, 3, 1, 40, past=1500),  # a long cache; a head that is no whole number of vectors
    Case(2, 37, 4, 4, 32, past=0, rotated=32),  # a prompt, no sharing
    Case(1, 70, 14, 2, 64, past=0, rotated=64),
    Case(1, 9, 8, 2, 80, past=130, rotated=80),  # a chunk behind a past
    Case(2, 50, 4, 2, 8, past=0, window=5, rotated=8),
    Case(2, 1, 4, 2, 16, past=200, window=70),
    Case(1, 1, 4, 2, 16, past=40, window=1),  # a token sees itself
    Case(2, 20, 4, 1, 24, past=0, softcap=3.0),
    Case(1, 3, 71, 1, 16, past=5),  # more heads to a key than a task takes
    Case(1, 1, 2, 2, 256, past=0),
]


def _made(case: Case) -> tuple[dict[str, np.ndarray], dict[str, float], Rotary | None]:
    rng = np.random.default_rng(case.seq * case.head_dim + case.past)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    capacity = case.past + case.seq + 3
    last = np.array([first + case.seq - 1 for first in case.first_slots], np.int32)
    inputs = {
        "query": normal(case.batch, case.seq, case.heads * case.head_dim),
        "key": normal(case.batch, case.seq, case.kv_heads * case.head_dim),
        "value": normal(case.batch, case.seq, case.kv_heads * case.head_dim),
        "past_key": normal(case.batch, case.kv_heads, capacity, case.head_dim),
        "past_value": normal(case.batch, case.kv_heads, capacity, case.head_dim),
        "last_slot": last,
        "total_tokens": np.array(last.max() + 1, np.int32),
    }
    rotary = None
    if case.rotated:
        angles = rng.random((case.batch, case.seq, case.rotated // 2)).astype(np.float32) * 6
        rotary = Rotary(np.cos(angles), np.sin(angles))
        inputs |= {"cos": rotary.cos, "sin": rotary.sin}
    attributes: dict[str, float] = {
        "num_heads": case.heads,
        "kv_num_heads": case.kv_heads,
        "scale": float(case.head_dim**-0.5),
        "local_window_size": case.window,
        "softcap": case.softcap,
    }
    return inputs, attributes, rotary


def _run(library: Path | None, run: Run, inputs: dict[str, np.ndarray], attributes: dict[str, float]) -> list[Any]:
    return run(library, "CachedAttention", inputs, attributes=attributes, fed=tuple(inputs), num_outputs=3)


@pytest.mark.parametrize("case", CASES)
def test_is_the_reference(on_path: Path, run: Run, case: Case) -> None:
    inputs, attributes, rotary = _made(case)
    heads = {name: inputs[name].reshape(case.batch, case.seq, -1, case.head_dim) for name in ("query", "key", "value")}
    wanted, keys, values = cached_attention(
        *heads.values(),
        (inputs["past_key"], inputs["past_value"]),
        case.first_slots,
        scale=attributes["scale"],
        window=case.window,
        softcap=case.softcap,
        rotary=rotary,
    )
    out, present_key, present_value = _run(on_path, run, inputs, attributes)
    np.testing.assert_array_equal(present_value, values.astype(np.float32))
    # A rotation is two products and a sum of numbers below 6.
    np.testing.assert_allclose(present_key, keys, rtol=0, atol=3 * EPSILON * 2 * 6)
    # A score is a sum of head_dim products, a weight its exponential, an answer a mean by these weights.
    largest = np.abs(keys).max() * np.abs(inputs["query"]).max() * attributes["scale"] * case.head_dim
    tolerance = (case.head_dim + 8) * EPSILON * largest * np.abs(values).max()
    np.testing.assert_allclose(out.reshape(wanted.shape), wanted, rtol=0, atol=tolerance)
    assert tolerance < 2e-2 * np.abs(wanted).max()


@pytest.mark.parametrize("case", [case for case in CASES if not case.rotated and (case.is_prompt or case.seq == 1)])
def test_agrees_with_onnxruntime(
    library: Path, run: Run, open_session: Callable, make_graph: Callable, case: Case
) -> None:
    inputs, attributes, _ = _made(case)
    model: ir.Model = make_graph(
        "GroupQueryAttention",
        inputs,
        attributes=attributes,
        fed=tuple(inputs),
        num_outputs=3,
        domain="com.microsoft",
    )
    theirs = open_session(model, None).run(None, inputs)
    ours = _run(library, run, inputs, attributes)
    for mine, stock in zip(ours[:1], theirs[:1], strict=True):
        np.testing.assert_allclose(mine, stock, rtol=0, atol=1e-4 * np.abs(stock).max())
    for row, first in enumerate(case.first_slots):
        filled = slice(0, first + case.seq)
        for mine, stock in zip(ours[1:], theirs[1:], strict=True):
            np.testing.assert_array_equal(mine[row, :, filled], stock[row, :, filled])


def test_one_memory_is_updated_in_place(library: Path, open_session: Callable, make_graph: Callable) -> None:
    import onnxruntime as ort

    case = CASES[0]
    inputs, attributes, _ = _made(case)
    session = open_session(
        make_graph("CachedAttention", inputs, attributes=attributes, fed=tuple(inputs), num_outputs=3), library
    )
    apart = session.run(None, inputs)
    binding = session.io_binding()
    for name, array in inputs.items():
        value = ort.OrtValue.ortvalue_from_numpy(array.copy())
        binding.bind_ortvalue_input(name, value)
        if name in {"past_key", "past_value"}:
            binding.bind_ortvalue_output("y1" if name == "past_key" else "y2", value)
    binding.bind_output("y0", "cpu")
    session.run_with_iobinding(binding)
    outputs = dict(zip((o.name for o in session.get_outputs()), apart, strict=True))
    for name, value in zip(("y1", "y2", "y0"), binding.get_outputs(), strict=True):
        np.testing.assert_array_equal(value.numpy(), outputs[name])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kv_num_heads": 3}, "4 heads cannot share 3"),
        ({"query": np.zeros((1, 1, 63), np.float32)}, r"'query' is \(1, 1, 63\), wanted \(batch, seq, 4 \* head_dim\)"),
        ({"key": np.zeros((1, 1, 16), np.float32)}, r"'key' is \(1, 1, 16\), wanted \(1, 1, 32\) fp32"),
        ({"past_value": np.zeros((1, 2, 4, 16), np.float32)}, "'past_value' is"),
        ({"last_slot": np.array([9], np.int32)}, "1 tokens from slot 9 on do not lie in a cache of 9"),
        ({"last_slot": np.array([-1], np.int32)}, "1 tokens from slot -1 on"),
        ({"cos": np.zeros((1, 1, 9), np.float32)}, "'cos' is"),
        ({"sin": np.zeros((1, 2, 8), np.float32)}, "'sin' is"),
    ],
)
def test_mistakes_are_refused(library: Path, run: Run, changed: dict[str, Any], message: str) -> None:
    inputs, attributes, _ = _made(Case(1, 1, 4, 2, 16, past=5, rotated=16))
    for name, value in changed.items():
        (attributes if name in attributes else inputs)[name] = value
    with pytest.raises(Exception, match=message):
        _run(library, run, inputs, attributes)
