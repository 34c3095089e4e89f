import pytest
import torch

pytest.importorskip("triton")

from blockexport_kernels.triton import reference
from blockexport_kernels.triton.block_table import BlockTable, BlockWeights
from blockexport_kernels.triton.checks.kv_backfill import Case, check, make
from blockexport_kernels.triton.checks.residual_rmsnorm import EPSILON
from blockexport_kernels.triton.errors import KernelInputError, KernelUnavailableError
from blockexport_kernels.triton.kv_backfill import kv_backfill

CPU = torch.device("cpu")
SMALL = Case(spans=(0, 1), tokens=(2,), hidden=8, head_dim=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 128, 40])
def test_several_blocks_and_spans_at_once(interpreted, head_dim: int, dtype: torch.dtype) -> None:
    outcome = interpreted(check, Case(spans=(0, 0, 1), tokens=(5, 0, 17), head_dim=head_dim, bare=(1,), dtype=dtype))
    assert outcome.passed, outcome


@pytest.mark.parametrize(
    "case",
    [
        Case(spans=(0,), tokens=(0,)),
        Case(spans=(0,), tokens=(1,), first_slot=0, kv_heads=1),
        Case(spans=(0, 0), tokens=(70,), hidden=33, has_angles=False, bare=(0, 1)),
        Case(spans=(1, 0), tokens=(3, 66), hidden=130, kv_heads=3, head_dim=6),
    ],
    ids=["no tokens", "one token", "more than a tile, no angles, no biases", "odd shapes"],
)
def test_edges(interpreted, case: Case) -> None:
    outcome = interpreted(check, case)
    assert outcome.passed, outcome


def test_values_are_as_a_block_would_have_made_them() -> None:
    """The reference, against torch's own norm and linear layer."""
    made = make(SMALL, CPU)
    block, hidden = made.weights[0], made.hidden[0]
    normed = torch.nn.functional.rms_norm(hidden, (8,), block.norm, EPSILON)
    expected = torch.nn.functional.linear(normed, block.value, block.value_bias).view(-1, 2, 4)
    projection, bias = block.value.view(2, 4, 8), block.value_bias.view(2, 4)
    got = reference.kv_backfill(hidden, block.norm, projection, bias, None, EPSILON)
    # Sums of 8 products, twice.
    bound = 2 * 8 * torch.finfo(torch.float32).eps * (normed.abs() @ block.value.abs().T + block.value_bias.abs())
    assert ((got - expected).abs() <= bound.view(-1, 2, 4)).all()


def test_a_table_finds_every_tensor_where_it_lies() -> None:
    made = make(SMALL, CPU)
    table = made.table
    for block, offsets in enumerate(table.weight_offsets.tolist()):
        for tensor, offset in zip(made.weights[block], offsets, strict=True):
            flat = table.matrices if tensor.dim() == 2 else table.vectors
            assert flat[offset:].data_ptr() == tensor.data_ptr()
        for part, offset in enumerate(table.cache_offsets[block].tolist()):
            assert table.cache[offset:].data_ptr() == made.cache[block, part].data_ptr()


def _with(weights: BlockWeights, **changes: torch.Tensor) -> list[BlockWeights]:
    return [weights._replace(**changes)]


@pytest.mark.parametrize(
    ("make_weights", "words"),
    [
        (lambda w: [], "weights of 0 blocks"),
        (lambda w: _with(w, key=w.key[:4]), r"key is \(4, 8\).*\(8, 8\)"),
        (lambda w: _with(w, key=w.key.T), "contiguous"),
        (lambda w: _with(w, key=w.key.clone()), "several allocations"),
        (lambda w: _with(w, key=w.key.half()), "several types"),
    ],
)
def test_a_table_names_what_it_cannot_take(make_weights, words: str) -> None:
    made = make(SMALL, CPU)
    keys, values = made.cache[0]
    with pytest.raises(KernelInputError, match=words):
        BlockTable.of(make_weights(made.weights[0]), [(keys, values)])


def test_matrices_have_to_be_aligned() -> None:
    made = make(SMALL, CPU)
    flat = torch.zeros(130)
    weights = made.weights[0]._replace(key=flat[1:65].view(8, 8), value=flat[65:129].view(8, 8))
    keys, values = made.cache[0]
    with pytest.raises(KernelInputError, match="no multiple of 16 bytes"):
        BlockTable.of([weights], [(keys, values)])


def test_cache_rows_have_to_be_alike() -> None:
    made = make(SMALL, CPU)
    keys, values = made.cache[0]
    with pytest.raises(KernelInputError, match="alike"):
        BlockTable.of(made.weights[:1], [(keys, values[:, :, :-1])])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slots": torch.zeros(2, dtype=torch.int32)}, r"slots are \(2,\)"),
        ({"rows": torch.zeros(3)}, "int32"),
        ({"hidden": torch.zeros(2, 3, 8).half()}, "one type"),
        ({"hidden": torch.zeros(2, 3, 9)}, r"hidden are \(2, 3, 9\).*\(2, 3, 8\)"),
        ({"spans": torch.zeros(1, dtype=torch.int32)}, r"spans are \(1,\)"),
    ],
)
def test_what_cannot_be_taken_is_named(changes, words: str) -> None:
    made = make(SMALL, CPU)
    given = {"hidden": made.hidden, "spans": made.spans, "rows": made.rows, "slots": made.slots} | changes
    with pytest.raises(KernelInputError, match=words):
        kv_backfill(table=made.table, cos_sin=made.cos_sin, epsilon=EPSILON, **given)


def test_without_a_gpu_it_says_so() -> None:
    made = make(SMALL, CPU)
    with pytest.raises(KernelUnavailableError, match="on cpu"):
        kv_backfill(made.hidden, made.spans, made.table, made.cos_sin, made.rows, made.slots, EPSILON)
