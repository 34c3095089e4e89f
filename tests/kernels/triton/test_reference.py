"""The references themselves: against torch's own functions, and without Triton."""

import subprocess
import sys

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from blockexport_kernels.triton import reference

FP64 = torch.float64


@pytest.mark.parametrize("holes", [None, [[[1, 4], [3, 6]], [[0, 0], [0, 2]]]])
def test_decode_attention_is_that_of_torch_behind_a_mask(holes: list | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn((2, n, 4), generator=generator, dtype=FP64) for n in (6, 2, 2))
    keys, values = (torch.randn((2, 2, 9, 4), generator=generator, dtype=FP64) for _ in range(2))
    slots = torch.tensor([7, 2])
    spans = None if holes is None else torch.tensor(holes)
    got = reference.decode_attention(query, key, value, keys, values, slots, spans)
    seen = torch.arange(9) <= slots[:, None]
    for row, spans_of_row in enumerate(holes or []):
        for first, end in spans_of_row:
            seen[row, first:end] = False
    mask = seen[:, None, None]
    expected = scaled_dot_product_attention(query[:, :, None], keys, values, attn_mask=mask, enable_gqa=True)[:, :, 0]
    # Both compute in fp64; sums of at most nine terms of order one.
    torch.testing.assert_close(got, expected, rtol=0, atol=64 * torch.finfo(FP64).eps)
    assert torch.equal(keys[0, :, 7], key[0])
    assert torch.equal(values[1, :, 2], value[1])


def test_a_row_without_a_token_attends_to_nothing_and_is_not_written() -> None:
    query = torch.ones(1, 2, 4)
    keys, values = torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4)
    out = reference.decode_attention(query, query[:, :1], query[:, :1], keys, values, torch.tensor([-1]))
    assert not out.any()
    assert not keys.any()
    assert not values.any()


def test_keys_are_rotated_by_their_angles() -> None:
    """A rotation by a right angle takes the first half to the second, and the second to the first with its sign."""
    hidden, norm = torch.tensor([[1.0, -1.0]], dtype=FP64), torch.ones(2, dtype=FP64)
    projection = torch.eye(2, dtype=FP64)[None]
    angles = (torch.zeros(1, 1, dtype=FP64), torch.ones(1, 1, dtype=FP64))
    got = reference.kv_backfill(hidden, norm, projection, None, angles, 0.0)
    assert torch.equal(got, torch.tensor([[[1.0, 1.0]]], dtype=FP64))


def test_references_need_no_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None; import torch; from blockexport_kernels.triton import reference; "
        "reference.residual_rmsnorm(torch.ones(1, 4), None, torch.ones(4), 1e-6)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
