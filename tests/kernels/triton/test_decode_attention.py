from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from blockexport_kernels.triton import reference
from blockexport_kernels.triton.checks.decode_attention import Case, Inputs, allowed, check, make
from blockexport_kernels.triton.checks.rounding import compare
from blockexport_kernels.triton.decode_attention import decode_attention
from blockexport_kernels.triton.errors import KernelInputError, KernelUnavailableError

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RAGGED = Case(
    lengths=(150, 0, 1, 77),
    holes=(((10, 100),), (), (), ((0, 5), (70, 76))),
    num_splits=3,
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (4, 128), (7, 128), (7, 80)])
def test_ragged_rows_with_holes(interpreted, group: int, head_dim: int, dtype: torch.dtype) -> None:
    outcome = interpreted(check, replace(RAGGED, group=group, head_dim=head_dim, dtype=dtype))
    assert outcome.passed, outcome


@pytest.mark.parametrize(
    "case",
    [
        Case(lengths=(), kv_heads=1),
        Case(lengths=(0, 0)),
        Case(lengths=(1,), num_splits=8),
        Case(lengths=(65,), capacity=300, num_splits=64, group=1, kv_heads=1),
        Case(lengths=(64, 65, 66), holes=(((0, 63),), ((0, 64),), ((1, 1), (0, 65))), num_splits=2),
        Case(lengths=(100,), holes=(((0, 40), (30, 99)),), group=17, head_dim=16),
    ],
    ids=[
        "no rows",
        "empty rows",
        "only new",
        "more splits than tiles",
        "all but the new is a hole",
        "overlapping holes",
    ],
)
def test_edges(interpreted, case: Case) -> None:
    outcome = interpreted(check, case)
    assert outcome.passed, outcome


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    lengths = draw(st.lists(st.integers(0, 140), min_size=1, max_size=3))

    def spans(length: int) -> tuple[tuple[int, int], ...]:
        ends = st.integers(0, max(length - 1, 0))
        pairs = draw(st.lists(st.tuples(ends, ends), max_size=2))
        return tuple((min(pair), max(pair)) for pair in pairs)

    return Case(
        lengths=tuple(lengths),
        holes=tuple(map(spans, lengths)),
        group=draw(st.sampled_from((1, 2, 7))),
        kv_heads=draw(st.sampled_from((1, 3))),
        head_dim=draw(st.sampled_from((8, 40, 64))),
        num_splits=draw(st.sampled_from((None, 1, 2, 5))),
        dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 9)),
    )


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=_cases())
def test_any_lengths_and_holes(interpreted, case: Case) -> None:
    outcome = interpreted(check, case)
    assert outcome.passed, (case, outcome)


def test_one_slot_less_is_seen() -> None:
    case = Case(lengths=(150,), kv_heads=1)
    wide = make(case, CPU).widened()
    fewer = replace(wide, keys=wide.keys.clone(), values=wide.values.clone(), holes=torch.tensor([[[20, 21]]]))
    expected = wide.call(reference.decode_attention)
    bound = allowed(case, wide, expected)
    assert compare(expected.float(), expected, bound).passed
    assert not compare(fewer.call(reference.decode_attention).float(), expected, bound).passed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i: replace(i, key=i.key[:, :1]), r"key is \(1, 1, 64\).*has to be \(1, 2, 64\)"),
        (lambda i: replace(i, query=i.query[:, :13]), "13 heads cannot share 2"),
        (lambda i: replace(i, query=i.query.double()), "one type"),
        (lambda i: replace(i, slots=i.slots.long()), "int32"),
        (lambda i: replace(i, holes=torch.zeros(1, 1, 2)), "int32"),
        (lambda i: replace(i, values=i.values.transpose(1, 2).contiguous().transpose(1, 2)), "alike"),
        (lambda i: replace(i, query=i.query.repeat(1, 1, 2)[..., ::2]), "beside one another"),
    ],
)
def test_what_cannot_be_taken_is_named(change, words: str) -> None:
    inputs: Inputs = change(make(Case(lengths=(3,)), CPU))
    with pytest.raises(KernelInputError, match=words):
        inputs.call(decode_attention)


def test_without_a_gpu_it_says_what_else_can_be_called() -> None:
    with pytest.raises(
        KernelUnavailableError, match=r"on cpu; .*blockexport_kernels.triton.reference.*TRITON_INTERPRET"
    ):
        make(Case(lengths=(3,)), CPU).call(decode_attention)
