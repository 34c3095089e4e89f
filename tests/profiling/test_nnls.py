from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blockexport.profiling.nnls import solve_nnls


def problem(seed: int, rows: int, columns: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, columns)), rng.normal(size=rows)


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 12), columns=st.integers(1, 6))
def test_the_solution_is_the_optimum(seed: int, rows: int, columns: int) -> None:
    matrix, target = problem(seed, rows, columns)
    x = solve_nnls(matrix, target)
    gradient = matrix.T @ (matrix @ x - target)
    # Karush-Kuhn-Tucker: for a convex problem these three together are the optimum.
    assert (x >= 0).all()
    assert (gradient >= -1e-7).all()
    assert (np.abs(x * gradient) < 1e-6).all()


@pytest.mark.parametrize("seed", range(20))
def test_no_point_of_a_fine_lattice_is_better(seed: int) -> None:
    matrix, target = problem(seed, 5, 2)
    ours = np.linalg.norm(matrix @ solve_nnls(matrix, target) - target)
    lattice = np.stack(np.meshgrid(np.linspace(0, 3, 200), np.linspace(0, 3, 200)), axis=-1).reshape(-1, 2)
    best = np.linalg.norm(lattice @ matrix.T - target, axis=1).min()
    assert ours <= best + 1e-12


def test_known_coefficients_of_very_different_size_are_recovered() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.uniform(1, 2, size=(30, 4)) * np.array([1.0, 1e3, 1e6, 1e-3])
    wanted = np.array([2.0, 3e-4, 0.0, 5e2])
    np.testing.assert_allclose(solve_nnls(matrix, matrix @ wanted), wanted, rtol=1e-8, atol=1e-14)


def test_of_equal_columns_only_one_is_used() -> None:
    column = np.array([[1.0], [2.0], [4.0]])
    x = solve_nnls(np.hstack([column, 2 * column, column]), column[:, 0] * 3)
    assert np.count_nonzero(x) == 1
    assert x[0] == pytest.approx(3.0)


def test_zero_columns_and_targets_below_zero_give_zeros() -> None:
    assert solve_nnls(np.zeros((3, 2)), np.ones(3)).tolist() == [0, 0]
    assert solve_nnls(np.eye(3), -np.ones(3)).tolist() == [0, 0, 0]


def test_every_pair_of_columns_is_tried() -> None:
    rng = np.random.default_rng(3)
    matrix = rng.uniform(0.1, 1, size=(20, 6))
    for pair in combinations(range(6), 2):
        wanted = np.zeros(6)
        wanted[list(pair)] = 1.5
        np.testing.assert_allclose(solve_nnls(matrix, matrix @ wanted), wanted, atol=1e-9)
