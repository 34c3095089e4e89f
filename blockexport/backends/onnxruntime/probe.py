"""Whether two files of one level are the same engine: asked by running both on inputs made up from the signature."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockexport.backends.onnxruntime.session import open_session

# A prompt goes through other kernels than a single token does; both read the same packed weights.
_NUM_TOKENS = (8, 1)
# Every vocabulary has as many, and special tokens among them are numbers like others.
_NUM_IDS = 8
_ARRAY_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


def gives_same_outputs(first: Path, second: Path, *, threads: int = 0) -> bool:
    """Whether two graphs with the same inputs answer the same, bit for bit.

    No tolerance: both run the same kernels in the same order over weights in the same form, only mapped from different
    places. The two are opened one after the other, so that one set of packed weights is in memory at a time.

    Raises:
        BundleError: the runtime cannot open one of them.
    """
    answers = [_answers(path, threads) for path in (first, second)]
    return len(answers[0]) == len(answers[1]) and all(
        np.array_equal(one, other, equal_nan=True) for one, other in zip(*answers, strict=True)
    )


def _answers(path: Path, threads: int) -> list[NDArray[Any]]:
    session = open_session(path, threads=threads)
    answers = []
    for num_tokens in _NUM_TOKENS:
        rng = np.random.default_rng(0)
        inputs = {value.name: _input(value, num_tokens, rng) for value in session.get_inputs()}
        answers += session.run(None, inputs)
    return answers


def _input(value: Any, num_tokens: int, rng: np.random.Generator) -> NDArray[Any]:
    """Something that an input may hold, by its name and type; names are those of `core.signature` and transformers."""
    sizes = {"seq": num_tokens, "capacity": max(_NUM_TOKENS)}
    shape = [size if isinstance(size, int) else sizes.get(size, 1) for size in value.shape]
    dtype = _ARRAY_TYPES[value.type]
    if issubclass(dtype, np.floating):
        is_cache = "capacity" in value.shape
        return np.zeros(shape, dtype) if is_cache else rng.standard_normal(shape).astype(dtype)
    name = value.name.partition(".")[0]
    if name == "input_ids":
        return rng.integers(0, _NUM_IDS, shape).astype(dtype)
    if name == "position_ids":
        return np.broadcast_to(np.arange(num_tokens, dtype=dtype), shape).copy()
    fill = {
        "attention_mask": 1,
        "total_tokens": num_tokens,
        "last_slot": num_tokens - 1,
        "logits_index": num_tokens - 1,
    }
    return np.full(shape, fill.get(name, 0), dtype)
