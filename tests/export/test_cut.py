"""Every depth of every architecture against the eager masked model, on whatever a runtime may ask of it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from blockexport.backends.onnxruntime.decoder import OrtDecoder
from blockexport.backends.onnxruntime.single_pass import OrtSinglePass
from blockexport.core.engine import StepInputs, empty_rows
from blockexport.core.expert_weights import source_of
from blockexport.core.masks import DepthMask
from blockexport.errors import ExportError
from blockexport.export.audit import audit
from blockexport.export.cut import cut
from blockexport.export.graph_file import shared_tensors
from blockexport.export.trace import block_unit
from blockexport.masking.masked import masked
from blockexport.models.loaded import LoadedModel
from blockexport.testing.tiny_models import ARCHITECTURES, DECODERS, IMAGE_SHAPE, VOCAB_SIZE

NUM_BLOCKS = 4
# Block 0 skipped, the last skipped, one alone, full depth.
KEPT = [(1, 3), (0, 1, 2), (2,), (0, 1, 2, 3)]
# fp32 rounding shows as some 5e-7 here, a wrong mask, position or weight as 1e-2.
TOLERANCE = 1e-5
# More than the sliding windows of the tiny models.
LENGTHS = np.array([9, 4, 12])
NUM_STEPS = 9
CAPACITY = 25

pytestmark = pytest.mark.slow


def eager(model: LoadedModel, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits (tokens, vocab) of one row without padding and without a cache."""
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0].numpy()


def bound(path: Path, layout: dict[int, tuple[int, int]], batch: int) -> Any:
    rows = empty_rows(layout, batch, CAPACITY, np.dtype(np.float32))
    for pair in rows.values():
        for array in pair:
            array.fill(7.0)  # whoever reads what was never written reads nonsense
    return OrtDecoder(path, threads=1).bind(rows)


def check_decoder(path: Path, model: LoadedModel, mask: DepthMask, layout: dict[int, tuple[int, int]]) -> None:
    rng = np.random.default_rng(0)
    prompt = rng.integers(1, VOCAB_SIZE, (len(LENGTHS), LENGTHS.max()))
    following = rng.integers(1, VOCAB_SIZE, (len(LENGTHS), NUM_STEPS))
    with masked(model, mask):
        expected = [
            eager(model, np.concatenate([prompt[row, :length], following[row]])) for row, length in enumerate(LENGTHS)
        ]
    # A ragged batch: prefill, then steps.
    runner = bound(path, layout, len(LENGTHS))
    logits = runner.step(StepInputs.prompt(prompt, LENGTHS, all_logits=True))
    for row, length in enumerate(LENGTHS):
        assert np.abs(logits[row, :length] - expected[row][:length]).max() < TOLERANCE
    for step in range(NUM_STEPS):
        logits = runner.step(StepInputs.following(following[:, step : step + 1], LENGTHS + step))
        wanted = np.stack([expected[row][length + step] for row, length in enumerate(LENGTHS)])
        assert np.abs(logits[:, 0] - wanted).max() < TOLERANCE
    # One row from nothing: a first token alone, then a chunk, then what is left of the prompt in one go.
    runner, start = bound(path, layout, 1), 0
    for size in (1, 6, 5):
        chunk = prompt[2:, start : start + size]
        inputs = StepInputs.following(chunk, np.array([start])) if start else StepInputs.prompt(chunk, np.array([size]))
        logits = runner.step(inputs)
        start += size
        assert np.abs(logits[0, -1] - expected[2][start - 1]).max() < TOLERANCE
    # Cache rows can be used again without clearing them.
    logits = runner.step(StepInputs.prompt(prompt[1:2, :4], np.array([4])))
    assert np.abs(logits[0, -1] - expected[1][3]).max() < TOLERANCE


def single_pass_batches(kind: str) -> Iterable[dict[str, NDArray[Any]]]:
    rng = np.random.default_rng(0)
    for batch, seq in [(3, 9), (1, 9), (2, 1)]:
        if kind == "vision":
            yield {"pixel_values": rng.standard_normal((batch, *IMAGE_SHAPE)).astype(np.float32)}
            continue
        tokens = rng.integers(1, VOCAB_SIZE, (batch, seq))
        lengths = np.maximum(seq - 3 * np.arange(batch), 1)[:, None]
        for real in (np.arange(seq) < lengths, np.arange(seq) >= seq - lengths):
            yield {"input_ids": tokens, "attention_mask": real.astype(np.int64)}


def check_single_pass(path: Path, model: LoadedModel, mask: DepthMask) -> None:
    runner = OrtSinglePass(path, threads=1)
    for inputs in single_pass_batches(model.spec.kind):
        with masked(model, mask), torch.no_grad():
            output = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        expected = getattr(output, model.spec.output).numpy()
        difference = np.abs(runner.forward(inputs) - expected)
        if "attention_mask" in inputs:
            difference = difference[inputs["attention_mask"] != 0]
        assert difference.max() < TOLERANCE


@pytest.mark.parametrize("kept", KEPT, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_engine_equals_masked_model(
    architecture: str, kept: tuple[int, ...], lowered: Callable, tmp_path: Path
) -> None:
    level, mask = lowered(architecture), DepthMask.from_kept(kept, NUM_BLOCKS)
    path = level.write(tmp_path, *kept)
    assert audit(path, mask, level.model.spec.block_path) == []
    if architecture in DECODERS:
        check_decoder(path, level.model, mask, level.layout)
    else:
        check_single_pass(path, level.model, mask)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_keep_their_names_and_values(architecture: str, lowered: Callable) -> None:
    level = lowered(architecture)
    stored = level.model.module.state_dict()
    tensors = shared_tensors(level.level(1, 3))
    prefix = level.model.spec.block_path
    for name, array in tensors.items():
        if name in stored:
            assert np.array_equal(array, stored[name].numpy())
        elif (source := source_of(name)) is not None:
            halves = stored[source].numpy()
            assert np.array_equal(np.concatenate([array[:, 0::2], array[:, 1::2]], axis=1), halves)
    # What is not in the checkpoint was computed when tracing: index ranges, and sums such as Gemma's 1 + norm weight.
    others = {name for name in tensors if name not in stored and source_of(name) not in stored}
    assert not [name for name in others if name.startswith(prefix)]
    assert not [name for name in others if tensors[name].ndim > 1 and tensors[name].dtype.kind == "f"]
    gone = {name for name in stored if name.startswith((f"{prefix}.0.", f"{prefix}.2."))}
    assert gone
    assert not gone & tensors.keys()
    matrices = {name for name in stored if name.startswith((f"{prefix}.1.", f"{prefix}.3.")) and stored[name].ndim > 1}
    assert matrices <= {source_of(name) or name for name in tensors}


@pytest.mark.parametrize("architecture", ["llama", "vit"])
def test_cutting_leaves_the_marked_graph_alone(architecture: str, lowered: Callable) -> None:
    marked = lowered(architecture).marked
    before = ir.to_proto(marked).SerializeToString(deterministic=True)
    cut(marked, [block_unit(0), block_unit(3)])
    assert ir.to_proto(marked).SerializeToString(deterministic=True) == before


def test_only_cache_rows_of_kept_blocks_are_inputs_and_outputs(lowered: Callable) -> None:
    graph = lowered("llama").level(1, 3).graph
    rows = [f"{block}.{part}" for block in (1, 3) for part in ("key", "value")]
    fixed = ["input_ids", "position_ids", "total_tokens", "logits_index"]
    taken = [
        [f"last_slot.{block}", *(f"past_key_values.{block}.{part}" for part in ("key", "value"))] for block in (1, 3)
    ]
    assert [value.name for value in graph.inputs] == [*fixed, *taken[0], *taken[1]]
    assert [value.name for value in graph.outputs] == ["logits", *(f"present.{row}" for row in rows)]


def test_the_order_of_units_does_not_matter(lowered: Callable) -> None:
    marked = lowered("llama").marked
    serialised = {
        ir.to_proto(cut(marked, [block_unit(block) for block in order])).SerializeToString(deterministic=True)
        for order in ([0, 1, 3], [3, 1, 0], [1, 0, 3])
    }
    assert len(serialised) == 1


def test_an_unknown_unit_is_refused(lowered: Callable) -> None:
    with pytest.raises(ExportError, match=r"no boundary markers for \['block\.4'\]"):
        cut(lowered("llama").marked, [block_unit(0), block_unit(4)])


def test_a_unit_that_others_read_from_is_refused(lowered: Callable) -> None:
    marked = lowered("llama").marked.clone()
    nodes = {node.outputs[0].name: node for node in marked.graph}
    attentions = [node for node in nodes.values() if node.op_type == "GroupQueryAttention"]
    # Block 1 also attends to what block 0 has cached: neither can go alone.
    attentions[1].replace_input_with(3, attentions[0].inputs[3])
    with pytest.raises(ExportError, match=r"past_key_values\.0\.key is read although its output is cut"):
        cut(marked, [block_unit(0)])
