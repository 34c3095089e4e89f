import pytest
import torch

pytest.importorskip("triton")

from blockexport_kernels.triton import reference
from blockexport_kernels.triton.checks.residual_rmsnorm import EPSILON, Case, check, norm_error
from blockexport_kernels.triton.checks.rounding import compare
from blockexport_kernels.triton.errors import KernelInputError, KernelUnavailableError
from blockexport_kernels.triton.residual_rmsnorm import residual_rmsnorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_branch", [True, False])
@pytest.mark.parametrize(("tokens", "hidden"), [(1, 1), (3, 100), (5, 896), (2, 3584), (0, 64)])
def test_matches_the_reference(interpreted, tokens: int, hidden: int, has_branch: bool, dtype: torch.dtype) -> None:
    outcome = interpreted(check, Case(tokens, hidden, has_branch, dtype))
    assert outcome.passed, outcome


def test_a_number_left_out_of_the_mean_is_seen() -> None:
    rows = torch.randn((5, 896), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.ones(896, dtype=torch.float64)
    expected = reference.residual_rmsnorm(rows, None, weight, EPSILON)
    without = rows * torch.rsqrt(rows[:, 1:].square().sum(-1, keepdim=True) / 896 + EPSILON)
    assert not compare(without, expected, norm_error(896) * expected.abs()).passed


def test_a_skipped_span_adds_nothing_and_is_normalised_for_the_block_behind_it() -> None:
    """The reference, against three blocks of which the middle one is skipped, written out."""
    generator = torch.Generator().manual_seed(0)
    stream, branch, *norms = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(5))
    after_first = stream + branch
    expected = torch.nn.functional.rms_norm(after_first, (6,), norms[2], EPSILON)
    got = reference.residual_rmsnorm(stream, branch, norms[2], EPSILON)
    torch.testing.assert_close(got, expected, rtol=0, atol=8 * torch.finfo(torch.float64).eps)
    assert torch.equal(stream, after_first)


@pytest.mark.parametrize(
    ("residual", "branch", "weight", "words"),
    [
        (torch.zeros(2, 8), None, torch.zeros(4), r"the weight is \(4,\)"),
        (torch.zeros(8, 2).T, None, torch.zeros(8), "contiguous"),
        (torch.zeros(2, 8), torch.zeros(1, 8), torch.zeros(8), r"the branch is \(1, 8\)"),
        (torch.zeros(2, 8), torch.zeros(2, 8).double(), torch.zeros(8), "float64"),
    ],
)
def test_what_cannot_be_taken_is_named(residual, branch, weight, words: str) -> None:
    with pytest.raises(KernelInputError, match=words):
        residual_rmsnorm(residual, branch, weight, EPSILON)


def test_without_a_gpu_nothing_is_written() -> None:
    residual = torch.zeros(2, 8)
    with pytest.raises(KernelUnavailableError, match="on cpu"):
        residual_rmsnorm(residual, torch.ones(2, 8), torch.ones(8), EPSILON)
    assert not residual.any()
