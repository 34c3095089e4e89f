"""Mixtures of experts on every path against the reference, and what they must refuse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockexport.testing.quantised import random_quantised
from blockexport_kernels.ort_cpu import reference
from blockexport_kernels.ort_cpu.reference import Quantised

Run = Callable[..., list[np.ndarray]]
EPSILON = 2.0**-24  # of one rounding to fp32
CHOSEN = 2
FED = ("A", "experts", "weights")
# experts, width, inner: tails in columns and in pieces, several pieces, a single expert for all
SHAPES = [(5, 100, 37), (3, 96, 80), (2, 16, 48)]
# one token; experts with few rows; some with few and some with many; more tokens than are taken at a time
TOKENS = [1, 4, 70, 600]
FORMATS = [(4, 32, False), (4, 16, True), (8, 32, False), (8, 64, True)]


def _activations(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def _routing(rng: np.random.Generator, num_tokens: int, num_experts: int) -> tuple[np.ndarray, np.ndarray]:
    """Expert 0 is hardly ever chosen and the last one mostly."""
    liking = rng.random((num_tokens, num_experts)) + np.arange(num_experts) / 2
    experts = np.argsort(-liking, axis=1)[:, :CHOSEN]
    return experts.astype(np.int64), rng.random((num_tokens, CHOSEN), dtype=np.float32)


def _sum_up(errors: np.ndarray, experts: np.ndarray, weights: np.ndarray, made: list[Any], width: int) -> np.ndarray:
    """Of each token, what the errors and the roundings of the weighted sum come to."""
    total = np.zeros((len(experts), width))
    for (_, tokens, place), error, size in zip(reference.experts_tokens(experts), errors, made, strict=True):
        part = error + (CHOSEN + 1) * EPSILON * np.abs(size)
        np.add.at(total, tokens, weights[tokens, place][:, None] * part)
    return total


def _gated_error(product: np.ndarray, error: np.ndarray) -> np.ndarray:
    """silu has a slope below 1.1: an error of the gate passes on by that times `up`. 16 roundings for silu itself."""
    gate, up = product[:, 0::2], product[:, 1::2]
    passed = 1.1 * np.abs(up) * error[:, 0::2] + np.abs(gate) * error[:, 1::2]
    return passed + 16 * EPSILON * np.abs(reference.gated(gate, up))


def _dense_tolerance(a: Any, experts: Any, weights: Any, gate_up: Any, down: Any) -> np.ndarray:
    """One rounding for each step of a sum."""
    errors, made = [], []
    for expert, tokens, _ in reference.experts_tokens(experts):
        product = reference.matmul(a[tokens], gate_up[expert])
        error = (a.shape[1] + 2) * EPSILON * (np.abs(a[tokens]) @ np.abs(gate_up[expert]).T)
        hidden = reference.gated(product[:, 0::2], product[:, 1::2])
        steps = (hidden.shape[1] + 2) * EPSILON * np.abs(hidden)
        errors.append((_gated_error(product, error) + steps) @ np.abs(down[expert]).T)
        made.append(reference.matmul(hidden, down[expert]))
    return _sum_up(errors, experts, weights, made, a.shape[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_gated_experts_are_the_reference(on_path: Path, run: Run, shape: tuple[int, int, int]) -> None:
    num_experts, width, inner = shape
    rng = np.random.default_rng(width)
    gate_up, down = _activations(rng, num_experts, 2 * inner, width), _activations(rng, num_experts, width, inner)
    for num_tokens in TOKENS:
        a = _activations(rng, num_tokens, width)
        experts, weights = _routing(rng, num_tokens, num_experts)
        inputs = {"A": a, "experts": experts, "weights": weights, "gate_up": gate_up, "down": down}
        (out,) = run(on_path, "GatedExperts", inputs, fed=FED)
        wanted = reference.gated_experts(a, experts, weights, gate_up, down)
        tolerance = _dense_tolerance(a, experts, weights, gate_up, down)
        assert np.all(np.abs(out - wanted) <= tolerance), num_tokens
        assert np.median(tolerance) < 1e-3 * np.abs(wanted).max()  # a wrong expert could not hide in it


def _stacked(matrices: list[Quantised], name: str) -> dict[str, np.ndarray | None]:
    """Inputs of the operator: rows of bytes, and all else, with the experts as first axis."""
    has_zeros = matrices[0].zeros is not None
    return {
        f"{name}_B": np.stack([w.codes.reshape(len(w.codes), -1) for w in matrices]),
        f"{name}_scales": np.stack([w.scales for w in matrices]),
        f"{name}_zeros": np.stack([w.zeros for w in matrices]) if has_zeros else None,  # type: ignore[arg-type]
    }


def _product_error(a: np.ndarray, w: Quantised) -> np.ndarray:
    """What fp32 may lose of a product with integers: see the tests of `MatMulNBits`."""
    codes, scales = reference.quantise_activations(a, w.block_size)
    apart = np.abs(reference.centred(w)) + 2 * (8 if w.bits == 4 and w.zeros is None else 2 ** (w.bits - 1))
    sums = np.einsum("rbi,nbi->rnb", np.abs(codes), apart)
    return (w.num_blocks + 16) * EPSILON * (sums * scales[:, None, :] * w.scales[None]).sum(axis=2)


def _requantised_error(hidden: np.ndarray, error: np.ndarray, block: int) -> np.ndarray:
    """What an error of activations becomes in 8 bits: a scale that is a little off, and a whole step where the error
    may carry a number over the middle between two codes."""
    rows, inner = hidden.shape
    blocks = -(-inner // block)
    padded = np.zeros((2, rows, blocks * block))
    padded[:, :, :inner] = hidden, error
    by_block, errors = padded.reshape(2, rows, blocks, block)
    largest = np.abs(by_block).max(axis=2, keepdims=True)
    off = errors.max(axis=2, keepdims=True)
    step = np.maximum(largest, np.finfo(np.float32).tiny) / 127
    ratio = np.abs(by_block) / step
    near = np.abs(ratio - np.floor(ratio) - 0.5) <= (errors + ratio * off / 127) / step + 4 * EPSILON * ratio
    return (near * step + (ratio + 1) * off / 127).reshape(rows, -1)[:, :inner]


def _nbits_tolerance(a: Any, experts: Any, weights: Any, gate_up: list[Quantised], down: list[Quantised]) -> np.ndarray:
    errors, made = [], []
    for expert, tokens, _ in reference.experts_tokens(experts):
        product = reference.matmul_nbits(a[tokens], gate_up[expert])
        hidden = reference.gated(product[:, 0::2], product[:, 1::2])
        error = _gated_error(product, _product_error(a[tokens], gate_up[expert])) + EPSILON * np.abs(hidden)
        off = _requantised_error(hidden, error, down[expert].block_size)
        inputs = hidden.astype(np.float32)
        errors.append(off @ np.abs(reference.dequantise(down[expert])).T + _product_error(inputs, down[expert]))
        made.append(reference.matmul_nbits(inputs, down[expert]))
    return _sum_up(errors, experts, weights, made, a.shape[1])


@pytest.mark.parametrize(("bits", "block", "zeros"), FORMATS)
def test_gated_experts_nbits_are_the_reference(on_path: Path, run: Run, bits: int, block: int, zeros: bool) -> None:
    num_experts, width, inner = 4, 96, 80
    rng = np.random.default_rng(bits * block)
    gate_up = [random_quantised(rng, 2 * inner, width, bits, block, zeros=zeros) for _ in range(num_experts)]
    down = [random_quantised(rng, width, inner, bits, block, zeros=zeros) for _ in range(num_experts)]
    parts = _stacked(gate_up, "gate_up") | _stacked(down, "down")
    order = [f"{name}_{part}" for name in ("gate_up", "down") for part in ("B", "scales")]
    order += ["gate_up_zeros", "down_zeros"]
    for num_tokens in TOKENS:
        a = _activations(rng, num_tokens, width)
        experts, weights = _routing(rng, num_tokens, num_experts)
        inputs = {"A": a, "experts": experts, "weights": weights} | {name: parts[name] for name in order}
        settings = {"K": width, "bits": bits, "block_size": block}
        (out,) = run(on_path, "GatedExpertsNBits", inputs, attributes=settings, fed=FED)
        wanted = reference.gated_experts_nbits(a, experts, weights, gate_up, down)
        tolerance = _nbits_tolerance(a, experts, weights, gate_up, down)
        assert np.all(np.abs(out - wanted) <= tolerance), num_tokens
        assert np.median(tolerance) < 2e-2 * np.abs(wanted).max()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("num_tokens", [2, 80])
def test_what_is_not_finite_stays_in_its_row(on_path: Path, run: Run, bad: float, num_tokens: int) -> None:
    rng = np.random.default_rng(5)
    gate_up, down = _activations(rng, 3, 64, 32), _activations(rng, 3, 32, 32)
    a = _activations(rng, num_tokens, 32)
    a[0, 3] = bad
    experts, weights = _routing(rng, num_tokens, 3)
    inputs = {"A": a, "experts": experts, "weights": weights, "gate_up": gate_up, "down": down}
    (out,) = run(on_path, "GatedExperts", inputs, fed=FED)
    assert not np.isfinite(out[0]).any()
    assert np.isfinite(out[1:]).all()


def test_leading_axes_are_kept_and_there_may_be_no_token(library: Path, run: Run) -> None:
    rng = np.random.default_rng(6)
    gate_up, down = _activations(rng, 3, 64, 32), _activations(rng, 3, 32, 32)
    a = _activations(rng, 2, 3, 32)
    experts, weights = _routing(rng, 6, 3)
    inputs = {"A": a, "experts": experts, "weights": weights, "gate_up": gate_up, "down": down}
    (out,) = run(library, "GatedExperts", inputs, fed=FED)
    assert out.shape == (2, 3, 32)
    (flat,) = run(library, "GatedExperts", inputs | {"A": a.reshape(6, 32)}, fed=FED)
    np.testing.assert_array_equal(out.reshape(6, 32), flat)
    empty = {"A": a[:, :0], "experts": experts[:0], "weights": weights[:0]}
    (none,) = run(library, "GatedExperts", inputs | empty, fed=FED)
    assert none.shape == (2, 0, 32)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"experts": np.array([[0, 3]])}, "expert 3 is none of the 3"),
        ({"experts": np.array([[-1, 0]])}, "expert -1 is none of the 3"),
        ({"experts": np.zeros((2, 2), np.int64)}, r"'experts' is \(2, 2\), wanted \(1, experts of a token\)"),
        ({"weights": np.zeros((1, 3), np.float32)}, r"'weights' is \(1, 3\), wanted \(1, 2\), as experts"),
        ({"A": np.zeros((1, 31), np.float32)}, r"'A' is \(1, 31\), wanted \(..., 32\)"),
        ({"gate_up": np.zeros((3, 63, 32), np.float32)}, r"'gate_up' is \(3, 63, 32\), wanted \(E, 2h, d\)"),
        ({"down": np.zeros((3, 32, 31), np.float32)}, r"'down' is \(3, 32, 31\), wanted \(3, 32, 32\)"),
    ],
)
def test_what_does_not_fit_is_refused(library: Path, run: Run, changed: dict[str, Any], message: str) -> None:
    inputs = {
        "A": np.zeros((1, 32), np.float32),
        "experts": np.array([[0, 2]]),
        "weights": np.ones((1, 2), np.float32),
        "gate_up": np.zeros((3, 64, 32), np.float32),
        "down": np.zeros((3, 32, 32), np.float32),
    }
    with pytest.raises(Exception, match=message):
        run(library, "GatedExperts", inputs | changed, fed=FED)


def test_quantised_weights_that_do_not_fit_are_refused(library: Path, run: Run) -> None:
    rng = np.random.default_rng(7)
    gate_up, down = ([random_quantised(rng, n, 32, 4, 16, zeros=True) for _ in range(3)] for n in (64, 32))
    first, second = _stacked(gate_up, "gate_up"), _stacked(down, "down")
    a = {"A": np.zeros((1, 32), np.float32), "experts": np.array([[0, 2]]), "weights": np.ones((1, 2), np.float32)}
    inputs = a | {name: both[name] for both in (first, second) for name in both if not name.endswith("zeros")}
    wrong = inputs | {"down_scales": second["down_scales"][:, :, :1]}  # type: ignore[index]
    settings = {"K": 32, "bits": 4, "block_size": 16}
    with pytest.raises(Exception, match=r"'down_scales' is \(3, 32, 1\), wanted \(3, 32, 2\)"):
        run(library, "GatedExpertsNBits", wrong, attributes=settings, fed=FED)
    with pytest.raises(Exception, match=r"'gate_up_B' is \(3, 64, 16\), wanted \(3, 64, 32\)"):
        run(library, "GatedExpertsNBits", inputs, attributes=settings | {"bits": 8}, fed=FED)
