"""Arrays that an engine is tied to: read anew at every step, never copied, never overrun."""

from pathlib import Path

import numpy as np
import pytest

from blockexport.backends.onnxruntime.decoder import OrtDecoder
from blockexport.bundle.layout import WEIGHTS_FILE
from blockexport.bundle.weights import write_weights
from blockexport.core.engine import KvRow, StepInputs, empty_rows
from blockexport.errors import BundleError, RequestError
from blockexport.export.cut import cut
from blockexport.export.graph_file import save, shared_tensors
from blockexport.export.lower.ort import lower
from blockexport.export.trace import block_unit, trace
from blockexport.models.loaded import wrap_module
from blockexport.testing.tiny_models import tiny_model

pytestmark = pytest.mark.slow

TOKENS = np.random.default_rng(0).integers(1, 97, (2, 6))
LENGTHS = np.array([6, 4])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Block 1 of a llama of two."""
    folder = tmp_path_factory.mktemp("decoder")
    marked = lower(trace(wrap_module(tiny_model("llama", 2))))
    graph = cut(marked, [block_unit(0)])
    save(graph, folder / "d1.ort.onnx", write_weights(folder / WEIGHTS_FILE, shared_tensors(graph)))
    return folder / "d1.ort.onnx"


@pytest.fixture
def rows() -> dict[int, KvRow]:
    return empty_rows({0: (2, 8), 1: (2, 8)}, 2, 10, np.dtype(np.float32))


@pytest.fixture
def decoder(path: Path) -> OrtDecoder:
    return OrtDecoder(path, threads=1)


def test_only_rows_of_kept_blocks_are_written(decoder: OrtDecoder, rows: dict[int, KvRow]) -> None:
    assert decoder.blocks == (1,)
    decoder.bind(rows).step(StepInputs.prompt(TOKENS, LENGTHS))
    assert not rows[0][0].any()
    assert rows[1][0][0, :, :6].all()
    assert not rows[1][0][:, :, 6:].any()


def test_the_same_inputs_again_are_read_as_they_are_by_then(decoder: OrtDecoder, rows: dict[int, KvRow]) -> None:
    bound = decoder.bind(rows)
    bound.step(StepInputs.prompt(TOKENS, LENGTHS))
    inputs = StepInputs.following(TOKENS[:, :1], LENGTHS)
    first = bound.step(inputs)
    kept = first.copy()
    inputs.input_ids[:], inputs.total_tokens[...] = TOKENS[:, 1:2], 8
    inputs.position_ids[:] += 1
    inputs.last_position[:] += 1
    again = bound.step(inputs)
    assert again is first
    assert (again != kept).any()
    other = bound.step(StepInputs.following(TOKENS[:, 1:2], LENGTHS + 1))
    assert other is not first
    assert np.array_equal(other, again)


def test_a_block_with_a_slot_of_its_own_attends_to_what_lies_before_it(
    decoder: OrtDecoder, rows: dict[int, KvRow]
) -> None:
    """A block that lacks the first tokens gives what it gives when there never were any, at the same positions."""
    following = StepInputs.following(TOKENS[:, :1], LENGTHS)
    slots = np.zeros(2, np.int32)
    alone = StepInputs(
        following.input_ids, following.position_ids, following.total_tokens, following.logits_index, slots
    )
    own = StepInputs(
        following.input_ids,
        following.position_ids,
        following.total_tokens,
        following.logits_index,
        following.last_position,
        {1: slots},
    )
    for pair in rows.values():
        for array in pair:
            array.fill(1e3)
    bound = decoder.bind(rows)
    found = bound.step(own).copy()
    assert np.isfinite(found).all()
    assert np.array_equal(found, bound.step(alone))
    assert (rows[1][0][:, :, 1:] == 1e3).all()


@pytest.mark.parametrize("seq", [10, 11])
def test_the_cache_is_never_overrun(seq: int, decoder: OrtDecoder, rows: dict[int, KvRow]) -> None:
    bound = decoder.bind(rows)
    bound.step(StepInputs.prompt(np.ones((2, 10), np.int64), np.array([10, 3])))
    inputs = StepInputs.following(np.ones((2, 1), np.int64), np.array([10, 3]))
    with pytest.raises(RequestError, match="11 tokens do not fit a cache of 10; allocate more or ask for fewer"):
        bound.step(inputs)
    with pytest.raises(RequestError, match="do not fit"):
        bound.step(StepInputs.prompt(np.ones((2, 11), np.int64), np.array([seq, 3])))


def test_a_failing_engine_is_an_error_of_ours(decoder: OrtDecoder, rows: dict[int, KvRow]) -> None:
    inputs = StepInputs.prompt(TOKENS, LENGTHS)
    inputs.input_ids[0, 0] = 97
    with pytest.raises(RequestError, match="ONNX Runtime failed on 2x6 tokens: ") as caught:
        decoder.bind(rows).step(inputs)
    assert "\n" not in str(caught.value)


def test_what_is_no_graph_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "d1.ort.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"cannot open d1\.ort\.onnx"):
        OrtDecoder(tmp_path / "d1.ort.onnx")


def test_memory_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("blockexport.core.engine.np.zeros", refuse)
    with pytest.raises(RequestError, match=r"no memory for a cache of 2 x 1000 tokens \(8 MB\); ask for fewer rows"):
        empty_rows({3: (16, 32)}, 2, 1000, np.dtype(np.float32))
