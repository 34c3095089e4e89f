"""Every operator on every path against the reference, against ONNX Runtime's own, and what each must refuse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from blockexport.testing.quantised import random_quantised
from blockexport_kernels.ort_cpu import reference
from blockexport_kernels.ort_cpu.reference import Quantised

Run = Callable[..., list[np.ndarray]]
EPSILON = 2.0**-24  # of one rounding to fp32
FORMATS = [(4, 32, False), (4, 32, True), (4, 64, False), (4, 128, True), (4, 16, True), (4, 256, False)]
FORMATS += [(8, 32, True), (8, 32, False), (8, 64, True), (8, 128, False), (8, 16, False), (8, 256, True)]
# n, k: tails in columns, in a group of codes and in a block; a hidden size of 48; several pieces for each thread
SHAPES = [(1, 32), (37, 48), (33, 128), (70, 384), (129, 1000), (260, 896)]
ROWS = [1, 2, 5, 33, 200]
DENSE = [np.float32, ml_dtypes.bfloat16]


def _attributes(w: Quantised, **flags: float) -> dict[str, int | float]:
    layout = {"K": w.k, "bits": w.bits, "block_size": w.block_size, "zero_points": int(w.zeros is not None)}
    return {**layout, **flags}


def _activations(rng: np.random.Generator, rows: int, k: int) -> np.ndarray:
    return rng.standard_normal((rows, k), dtype=np.float32)


def _tolerance(a: np.ndarray, w: Quantised) -> np.ndarray:
    """What fp32 may lose: one rounding for each block and each step of adding up the lanes, on sums that are cut into
    lanes before the zero point is taken off, so their magnitude is that of codes and zero points apart."""
    codes, scales = reference.quantise_activations(a, w.block_size)
    apart = np.abs(reference.centred(w)) + 2 * (8 if w.bits == 4 and w.zeros is None else 2 ** (w.bits - 1))
    sums = np.einsum("rbi,nbi->rnb", np.abs(codes), apart)
    magnitude = (sums * scales[:, None, :] * w.scales[None]).sum(axis=2)
    return (w.num_blocks + 16) * EPSILON * magnitude


def _inputs(a: np.ndarray, w: Quantised, **others: np.ndarray | None) -> dict[str, np.ndarray | None]:
    """What follows the weights by their flags' order: bias, residual, norm."""
    given = {"A": a, "B": w.codes, "scales": w.scales, "zero_points": w.zeros, **others}
    return {name: array for name, array in given.items() if array is not None}


@pytest.mark.parametrize(("bits", "block", "zeros"), FORMATS)
def test_matmul_nbits_is_the_reference(on_path: Path, run: Run, bits: int, block: int, zeros: bool) -> None:
    rng = np.random.default_rng(bits * block)
    for (n, k), rows in zip(SHAPES, [*ROWS, 7], strict=True):
        w = random_quantised(rng, n, k, bits, block, zeros=zeros)
        bias = rng.standard_normal(n, dtype=np.float32)
        for count in (1, rows):
            a = _activations(rng, count, k)
            (out,) = run(on_path, "MatMulNBits", _inputs(a, w, bias=bias), attributes=_attributes(w, bias=1))
            wanted = reference.matmul_nbits(a, w, bias)
            tolerance = _tolerance(a, w) + 2 * EPSILON * (np.abs(wanted) + np.abs(bias))
            assert np.all(np.abs(out - wanted) <= tolerance), (n, k, count)
            assert np.median(tolerance) < 1e-2 * np.abs(wanted).max()  # a wrong block could not hide in it


@pytest.mark.parametrize(("bits", "block", "zeros"), FORMATS)
def test_integer_sums_are_exact(on_path: Path, run: Run, bits: int, block: int, zeros: bool) -> None:
    """Scales of 1 and activations that are whole numbers up to 127: every result is a whole number below 2^24."""
    rng = np.random.default_rng(bits + block)
    for (n, k), rows in zip([(37, 48), (70, 384)], [3, 33], strict=True):
        w = random_quantised(rng, n, k, bits, block, zeros=zeros)
        w = Quantised(w.codes, np.ones_like(w.scales), w.zeros, k, bits, block)
        a = rng.integers(-126, 127, (rows, k)).astype(np.float32)
        a[:, ::block] = 127
        (out,) = run(on_path, "MatMulNBits", _inputs(a, w), attributes=_attributes(w))
        np.testing.assert_array_equal(out, a.astype(np.int64) @ reference.dequantise(w).astype(np.int64).T)


@pytest.mark.parametrize(("bits", "block", "zeros"), [(4, 32, False), (4, 128, True), (8, 32, True), (8, 128, False)])
@pytest.mark.parametrize("rows", [1, 33])
def test_matmul_nbits_agrees_with_onnxruntime(
    on_path: Path, run: Run, bits: int, block: int, zeros: bool, rows: int
) -> None:
    """Whatever ONNX Runtime's kernel does here, each of the two is off by no more than activations in 8 bits can be."""
    rng = np.random.default_rng(rows)
    w = random_quantised(rng, 65, 896, bits, block, zeros=zeros)
    a = _activations(rng, rows, 896)
    (ours,) = run(on_path, "MatMulNBits", _inputs(a, w), attributes=_attributes(w))
    settings = {"K": w.k, "N": len(w.codes), "bits": w.bits, "block_size": w.block_size, "accuracy_level": 4}
    (theirs,) = run(None, "MatMulNBits", _inputs(a, w), attributes=settings, domain="com.microsoft")
    exact = reference.dequantise(w)
    _, scales = reference.quantise_activations(a, block)
    rounding = 0.5 * scales.repeat(block, axis=1)[:, :896] @ np.abs(exact).T + _tolerance(a, w)
    wanted = a.astype(np.float64) @ exact.T
    assert np.all(np.abs(ours - wanted) <= rounding)
    assert np.all(np.abs(theirs - ours) <= 2 * rounding)


def _dense(rng: np.random.Generator, n: int, k: int, kind: Any) -> np.ndarray:
    return rng.standard_normal((n, k), dtype=np.float32).astype(kind)


@pytest.mark.parametrize("kind", DENSE)
def test_matmul_is_exact_to_fp32(on_path: Path, run: Run, kind: Any) -> None:
    rng = np.random.default_rng(0)
    for (n, k), rows in zip(SHAPES, [1, 2, 5, 33, 200, 13], strict=True):
        w, bias = _dense(rng, n, k, kind), rng.standard_normal(n, dtype=np.float32)
        wide = w.astype(np.float32)
        for count in (1, rows):
            a = _activations(rng, count, k)
            (out,) = run(on_path, "MatMul", {"A": a, "W": w, "bias": bias}, attributes={"bias": 1})
            tolerance = (k + 2) * EPSILON * (np.abs(a) @ np.abs(wide).T + np.abs(bias))
            assert np.all(np.abs(out - reference.matmul(a, wide, bias)) <= tolerance), (n, k, count)
            (theirs,) = run(None, "MatMul", {"A": a, "W": np.ascontiguousarray(wide.T)}, domain="")
            assert np.all(np.abs(out - (theirs + bias)) <= 2 * tolerance)


@pytest.mark.parametrize("rows", [1, 33])
def test_every_finite_bf16_number_is_widened_exactly(on_path: Path, run: Run, rows: int) -> None:
    """Times one, and added to zeros: subnormal numbers, the largest and both zeros come out as they went in."""
    every = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    finite = every[np.isfinite(every.astype(np.float32))]
    w = np.zeros((len(finite), 16), ml_dtypes.bfloat16)
    w[:, 3] = finite
    a = np.zeros((rows, 16), np.float32)
    a[:, 3] = 1
    (out,) = run(on_path, "MatMul", {"A": a, "W": w})
    np.testing.assert_array_equal(out, np.tile(finite.astype(np.float32), (rows, 1)))


def test_leading_axes_are_kept(on_path: Path, run: Run) -> None:
    rng = np.random.default_rng(1)
    w = random_quantised(rng, 40, 64, 4, 32, zeros=False)
    a = rng.standard_normal((2, 3, 64), dtype=np.float32)
    (out,) = run(on_path, "MatMulNBits", _inputs(a, w), attributes=_attributes(w))
    assert out.shape == (2, 3, 40)
    (flat,) = run(on_path, "MatMulNBits", _inputs(a.reshape(6, 64), w), attributes=_attributes(w))
    np.testing.assert_array_equal(out.reshape(6, 40), flat)
    (none,) = run(on_path, "MatMulNBits", _inputs(a[:, :0], w), attributes=_attributes(w))
    assert none.shape == (2, 0, 40)


@pytest.mark.parametrize(("bits", "zeros"), [(4, False), (4, True), (8, True)])
def test_gather_gives_rows(library: Path, run: Run, bits: int, zeros: bool) -> None:
    rng = np.random.default_rng(2)
    w = random_quantised(rng, 50, 100, bits, 32, zeros=zeros)
    indices = np.array([[0, 49, -1], [7, 7, -50]])
    inputs = {"B": w.codes, "indices": indices, "scales": w.scales, "zero_points": w.zeros}
    (out,) = run(library, "GatherNBits", inputs, attributes=_attributes(w), fed=("indices",))
    np.testing.assert_array_equal(out, reference.gather_nbits(w, indices).astype(np.float32))


@pytest.mark.parametrize(("zeros", "with_bias"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("rows", [1, 33])
def test_several_products_are_those_of_one(on_path: Path, run: Run, zeros: bool, with_bias: bool, rows: int) -> None:
    rng = np.random.default_rng(3)
    a = _activations(rng, rows, 96)
    matrices = [random_quantised(rng, n, 96, 4, 32, zeros=zeros) for n in (70, 16, 33)]
    biases = [rng.standard_normal(len(w.codes), dtype=np.float32) if with_bias else None for w in matrices]
    inputs: dict[str, Any] = {"A": a}
    for i, (w, bias) in enumerate(zip(matrices, biases, strict=True)):
        given = {f"B{i}": w.codes, f"scales{i}": w.scales, f"zeros{i}": w.zeros, f"bias{i}": bias}
        inputs |= {name: array for name, array in given.items() if array is not None}
    settings = _attributes(matrices[0], bias=int(with_bias))
    outs = run(on_path, "MatMulNBits", inputs, attributes=settings, num_outputs=3)
    for out, w, bias in zip(outs, matrices, biases, strict=True):
        alone = _attributes(w, bias=int(with_bias))
        (single,) = run(on_path, "MatMulNBits", _inputs(a, w, bias=bias), attributes=alone)
        np.testing.assert_array_equal(out, single)


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("rows", [1, 5, 33])
def test_several_dense_products_are_those_of_one(on_path: Path, run: Run, rows: int, kind: Any) -> None:
    rng = np.random.default_rng(10)
    a = _activations(rng, rows, 96)
    matrices = [_dense(rng, n, 96, kind) for n in (70, 16, 33)]
    inputs = {"A": a} | {f"W{i}": w for i, w in enumerate(matrices)}
    outs = run(on_path, "MatMul", inputs, num_outputs=3)
    for out, w in zip(outs, matrices, strict=True):
        np.testing.assert_array_equal(out, run(on_path, "MatMul", {"A": a, "W": w})[0])


@pytest.mark.parametrize("rows", [1, 5, 16, 17, 200])
def test_norm_and_residual_are_taken_in(on_path: Path, run: Run, rows: int) -> None:
    """Against the reference in fp64. A norm adds k + 4 roundings of fp32 to activations that then are rounded again:
    whatever comes of that in the codes is at most one step each, which the dense product does not have."""
    rng = np.random.default_rng(11)
    k = 112
    a, norm = _activations(rng, rows, k), rng.standard_normal(k, dtype=np.float32)
    normalised = reference.rms_norm(a, norm, 1e-3)

    residual = _activations(rng, rows, 70)
    for kind in DENSE:
        dense = _dense(rng, 70, k, kind)
        inputs = {"A": a, "W": dense, "residual": residual, "norm": norm}
        (out,) = run(on_path, "MatMul", inputs, attributes={"residual": 1, "rms_epsilon": 1e-3})
        wanted = reference.matmul(normalised, dense) + residual
        magnitude = np.abs(normalised) @ np.abs(dense.astype(np.float64)).T + np.abs(residual)
        assert np.all(np.abs(out - wanted) <= (2 * k + 8) * EPSILON * magnitude)

    w = random_quantised(rng, 70, k, 8, 16, zeros=False)
    (out,) = run(
        on_path,
        "MatMulNBits",
        _inputs(a, w, residual=residual, norm=norm),
        attributes=_attributes(w, residual=1, rms_epsilon=1e-3),
    )
    single = normalised.astype(np.float32)
    _, scales = reference.quantise_activations(single, 16)
    one_step = scales.repeat(16, axis=1)[:, :k] @ np.abs(reference.dequantise(w)).T
    wanted = reference.matmul_nbits(single, w) + residual
    assert np.all(np.abs(out - wanted) <= one_step)
    assert np.median(np.abs(out - wanted)) <= np.median(_tolerance(single, w))  # most codes are the same


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 200])
def test_gated_products_are_gated(on_path: Path, run: Run, zeros: bool, rows: int) -> None:
    """silu has a slope below 1.1: an error of the gate passes on by that times `up`. 16 roundings for silu itself."""
    rng = np.random.default_rng(4)
    a = _activations(rng, rows, 96)
    gate, up = (random_quantised(rng, 70, 96, 4, 32, zeros=zeros) for _ in range(2))
    inputs = {f"gate_{name}": array for name, array in _inputs(a, gate).items() if name != "A"}
    inputs = {"A": a, **inputs, **{name: array for name, array in _inputs(a, up).items() if name != "A"}}
    (out,) = run(on_path, "MatMulNBits", inputs, attributes=_attributes(gate, gated=1))
    g, u = reference.matmul_nbits(a, gate), reference.matmul_nbits(a, up)
    wanted = reference.gated(g, u)
    tolerance = 1.1 * np.abs(u) * _tolerance(a, gate) + np.abs(g) * _tolerance(a, up) + 16 * EPSILON * np.abs(wanted)
    assert np.all(np.abs(out - wanted) <= tolerance + 1e-30)

    for kind in DENSE:
        wg, wu = _dense(rng, 70, 96, kind), _dense(rng, 70, 96, kind)
        (dense,) = run(on_path, "MatMul", {"A": a, "gate": wg, "up": wu}, attributes={"gated": 1})
        g, u = reference.matmul(a, wg), reference.matmul(a, wu)
        error = [98 * EPSILON * (np.abs(a) @ np.abs(w.astype(np.float32)).T) for w in (wg, wu)]
        wanted = reference.gated(g, u)
        tolerance = 1.1 * np.abs(u) * error[0] + np.abs(g) * error[1] + 16 * EPSILON * np.abs(wanted)
        assert np.all(np.abs(dense - wanted) <= tolerance + 1e-30)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("rows", [1, 33])
def test_what_is_not_finite_stays_so(on_path: Path, run: Run, bad: float, rows: int) -> None:
    rng = np.random.default_rng(5)
    w = random_quantised(rng, 33, 64, 4, 32, zeros=False)
    a = _activations(rng, rows, 64)
    a[0, 3] = bad
    a[-1, 40] = 0.0
    (out,) = run(on_path, "MatMulNBits", _inputs(a, w), attributes=_attributes(w))
    assert not np.isfinite(out[0]).any()
    assert np.isfinite(out[1:]).all()


def test_sessions_share_one_file(library: Path, run: Run, make_graph: Any, open_session: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    w = random_quantised(rng, 4096, 1024, 4, 32, zeros=False)
    a = _activations(rng, 1, 1024)
    model = make_graph("MatMulNBits", _inputs(a, w), attributes=_attributes(w))
    ir.save(model, tmp_path / "model.onnx", external_data="weights.bin")
    sessions = [open_session(tmp_path / "model.onnx", library, threads=threads) for threads in (1, 2)]
    outs = [opened.run(None, {"A": a})[0] for opened in sessions]
    np.testing.assert_array_equal(outs[0], outs[1])
    assert np.all(np.abs(outs[0] - reference.matmul_nbits(a, w)) <= _tolerance(a, w))
    maps = Path("/proc/self/maps")
    if maps.exists():  # mapped, once for each session, and so one copy in memory
        assert maps.read_text().count(str(tmp_path / "weights.bin")) >= 2


def _wrong(w: Quantised, **changed: Any) -> tuple[dict[str, Any], dict[str, float]]:
    inputs = _inputs(np.zeros((1, 64), np.float32), w)
    attributes = _attributes(w)
    for name, value in changed.items():
        if name in attributes and name not in {"zero_points", "bias"}:
            attributes[name] = value
        else:
            inputs[name] = value
            attributes |= {name: 1} if name in {"zero_points", "bias"} else {}
    return inputs, attributes


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bits": 3}, "bits is 3, wanted 4 or 8"),
        ({"block_size": 48}, "block_size is 48, wanted 16, 32, 64, 128 or 256"),
        ({"K": 0}, "K is 0"),
        ({"A": np.zeros((1, 65), np.float32)}, r"'A' is \(1, 65\), wanted \(..., 64\)"),
        ({"B": np.zeros((8, 2, 8), np.uint8)}, r"'B' is \(8, 2, 8\), wanted \(N, 2, 16\) uint8"),
        ({"scales": np.zeros((8, 3), np.float32)}, r"'scales' is \(8, 3\), wanted \(8, 2\) fp32"),
        ({"zero_points": np.zeros((8, 2), np.uint8)}, r"'zero_points' is \(8, 2\), wanted \(8, 1\) uint8"),
        ({"bias": np.zeros(9, np.float32)}, r"'bias' is \(9\), wanted \(8\) fp32"),
    ],
)
def test_wrong_shapes_are_refused(library: Path, run: Run, changed: dict[str, Any], message: str) -> None:
    w = random_quantised(np.random.default_rng(7), 8, 64, 4, 32, zeros=False)
    inputs, attributes = _wrong(w, **changed)
    with pytest.raises(Exception, match=message):
        run(library, "MatMulNBits", inputs, attributes=attributes)


def test_other_mistakes_are_refused(library: Path, run: Run) -> None:
    rng = np.random.default_rng(8)
    w, other = random_quantised(rng, 8, 64, 4, 32, zeros=False), random_quantised(rng, 9, 64, 4, 32, zeros=True)
    gather = {"B": w.codes, "indices": np.array([8]), "scales": w.scales}
    with pytest.raises(Exception, match="index 8 is outside the 8 rows"):
        run(library, "GatherNBits", gather, attributes=_attributes(w), fed=("indices",))
    a = np.zeros((1, 64), np.float32)
    gated = {"A": a, "gate": w.codes, "gs": w.scales, "up": other.codes, "us": other.scales}
    with pytest.raises(Exception, match="the gate has 8 rows and up has 9"):
        run(library, "MatMulNBits", gated, attributes=_attributes(w, gated=1))
    with pytest.raises(Exception, match="gated products take neither bias nor residual"):
        run(library, "MatMulNBits", gated, attributes=_attributes(w, gated=1, residual=1))
    several = {"A": a, "B": w.codes, "s": w.scales, "B1": w.codes}
    with pytest.raises(Exception, match="4 inputs, wanted 5 for 2 products by its attributes"):
        run(library, "MatMulNBits", several, attributes=_attributes(w), num_outputs=2)
    several |= {"s1": w.scales, "residual": np.zeros((1, 8), np.float32)}
    with pytest.raises(Exception, match="a residual is added to one output"):
        run(library, "MatMulNBits", several, attributes=_attributes(w, residual=1), num_outputs=2)
    wrong = _inputs(a, w, residual=np.zeros((1, 9), np.float32))
    with pytest.raises(Exception, match=r"'residual' is \(1, 9\), wanted \(1, 8\) fp32"):
        run(library, "MatMulNBits", wrong, attributes=_attributes(w, residual=1))
    wrong = _inputs(a, w, norm=np.zeros(63, np.float32))
    with pytest.raises(Exception, match=r"'norm' is \(63\), wanted \(64\) fp32"):
        run(library, "MatMulNBits", wrong, attributes=_attributes(w, rms_epsilon=1e-6))
    with pytest.raises(Exception, match=r"'W' is \(8, 64\), wanted \(N, 64\) fp32 or bf16"):
        run(library, "MatMul", {"A": a, "W": np.zeros((8, 64), np.float16)})
    mixed = {"A": a, "W": np.zeros((8, 64), np.float32), "W1": np.zeros((8, 64), ml_dtypes.bfloat16)}
    with pytest.raises(Exception, match="the matrices are of two types"):
        run(library, "MatMul", mixed, num_outputs=2)
    with pytest.raises(Exception, match="'bits' is missing"):
        run(library, "MatMulNBits", _inputs(a, w), attributes={"K": 64, "block_size": 32})
