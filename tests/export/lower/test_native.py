"""Our operators in place of ONNX Runtime's: the same answers from the same weights."""

from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from blockexport.backends.onnxruntime.operators import native_library
from blockexport.backends.onnxruntime.session import open_session
from blockexport.bundle.layout import WEIGHTS_FILE
from blockexport.bundle.weights import write_weights
from blockexport.core.precision import FP32, Precision
from blockexport.errors import BackendUnavailableError
from blockexport.export.cut import cut
from blockexport.export.graph_file import save, shared_tensors
from blockexport.export.lower import ort
from blockexport.export.lower.native import DOMAIN, use_native_operators
from blockexport.export.trace import block_unit, trace
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.quantization.graph import quantise_graph
from blockexport.testing.tiny_models import VOCAB_SIZE, tiny_model

NUM_BLOCKS = 3
SKIPPED = 1
BATCH, SEQ, CAPACITY = 2, 5, 9
# Sums in another order; a wrong weight, bias or gate shows as 1e-2.
TOLERANCE = 1e-5

pytestmark = pytest.mark.slow


@cache
def _marked(architecture: str) -> tuple[LoadedModel, ir.Model]:
    model = wrap_module(tiny_model(architecture, NUM_BLOCKS))
    return model, ort.lower(trace(model))


def _stock(architecture: str, precision: str) -> ir.Model:
    marked, chosen = _marked(architecture)[1], Precision.parse(precision)
    return marked if chosen == FP32 else quantise_graph(marked, chosen).model


@pytest.fixture(scope="module")
def library() -> Path:
    try:
        return native_library()
    except BackendUnavailableError as error:
        pytest.skip(str(error))


def _feeds(session: Any) -> dict[str, NDArray[Any]]:
    """A first prompt for whatever inputs a level has."""
    rng = np.random.default_rng(0)
    columns = np.tile(np.arange(SEQ), (BATCH, 1))
    known: Mapping[str, NDArray[Any]] = {
        "input_ids": rng.integers(1, VOCAB_SIZE, (BATCH, SEQ)),
        "position_ids": columns,
        "logits_index": columns,
        "total_tokens": np.array(SEQ, np.int32),
        "attention_mask": np.ones((BATCH, SEQ), np.int64),
        "pixel_values": rng.standard_normal((BATCH, 1, 8, 8)).astype(np.float32),
    }
    feeds = {}
    for value in session.get_inputs():
        if value.name.startswith("last_slot."):
            feeds[value.name] = np.full(BATCH, SEQ - 1, np.int32)
        elif value.name.startswith("past_key_values."):
            feeds[value.name] = np.zeros((BATCH, value.shape[1], CAPACITY, value.shape[3]), np.float32)
        else:
            feeds[value.name] = known[value.name]
    return feeds


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8g32", "int4g16", "int4g32a"])
@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "gemma2", "olmoe", "bert", "vit"])
def test_native_and_stock_agree(architecture: str, precision: str, tmp_path: Path, library: Path) -> None:
    stock = _stock(architecture, precision)
    levels = [cut(graph, [block_unit(SKIPPED)]) for graph in (stock, use_native_operators(stock))]
    tensors = {name: tensor for level in levels for name, tensor in shared_tensors(level).items()}
    locations = write_weights(tmp_path / WEIGHTS_FILE, tensors)
    outputs = []
    for name, level in zip(("stock", "native"), levels, strict=True):
        save(level, tmp_path / f"{name}.onnx", locations)
        session = open_session(tmp_path / f"{name}.onnx", threads=1, library=library)
        outputs.append(session.run(None, _feeds(session)))
    assert any(node.domain == DOMAIN for node in levels[1].graph)
    for ours, theirs in zip(*outputs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def test_native_weights_are_stock_weights() -> None:
    stock = _stock("qwen2", "int4g16")
    native = use_native_operators(stock)
    ours, theirs = shared_tensors(native), shared_tensors(stock)
    # Of the embedding's bytes the native graph reads the shape of a linear layer.
    assert {name.replace(".rows", ".packed") for name in theirs} == set(ours)


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "bert", "vit"])
def test_bf16_weights_are_read_as_they_are_stored(architecture: str) -> None:
    """Those of linear layers by our product, which GPT-2's in fp32 are not, having inputs first."""
    native = use_native_operators(_stock(architecture, "bf16"))
    stored = [value for value in native.graph.initializers.values() if value.dtype == ir.DataType.BFLOAT16]
    assert {value.name for value in stored} == {
        name for name in shared_tensors(_stock(architecture, "bf16")) if name.endswith(".bf16")
    }
    readers = {(node.domain, node.op_type) for value in stored for node, _ in value.uses()}
    assert readers == {(DOMAIN, "MatMul")} | (set() if architecture == "vit" else {("", "Gather")})


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int4g16"])
def test_a_block_is_five_nodes(precision: str) -> None:
    chosen = Precision.parse(precision)
    native = use_native_operators(_stock("qwen2", precision))
    product = "MatMulNBits" if chosen.is_quantised else "MatMul"
    counts = Counter(node.op_type for node in native.graph if node.domain == DOMAIN)
    # For each block: queries, keys and values; attention; output; gate and up; down. And the head.
    wanted = {product: 4 * NUM_BLOCKS + 1, "CachedAttention": NUM_BLOCKS}
    assert counts == wanted | ({"GatherNBits": 1} if chosen.is_quantised else {})
    gone = {"FusedMatMul", "MatMulNBits", "Sigmoid", "RotaryEmbedding", "GroupQueryAttention"}
    assert gone & {node.op_type for node in native.graph if node.domain != DOMAIN} == set()
    # Of norms only the last is left, which stands before rows are chosen; of additions none of the residual stream.
    assert sum(node.op_type == "RMSNormalization" for node in native.graph) == 1
    flags = Counter(name for node in native.graph for name in ("residual", "gated") if name in node.attributes)
    assert flags == {"residual": 2 * NUM_BLOCKS, "gated": NUM_BLOCKS}


def test_what_others_read_too_stays() -> None:
    """Gemma 2 normalises what a layer gives before it is added: neither addition nor norm has one reader of ours."""
    native = use_native_operators(_marked("gemma2")[1])
    ours = [node for node in native.graph if node.domain == DOMAIN]
    assert not any("residual" in node.attributes for node in ours)
    assert sum(node.op_type == "Add" for node in native.graph) >= 2 * NUM_BLOCKS


def test_the_stock_graph_stays_as_it_is() -> None:
    marked = _marked("qwen2")[1]
    before = [(node.domain, node.op_type, node.name) for node in marked.graph]
    use_native_operators(marked)
    assert [(node.domain, node.op_type, node.name) for node in marked.graph] == before
