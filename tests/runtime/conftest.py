"""Small ladders of several architectures, and an eager session to hold the runtime's to."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DummyLayer, DynamicCache

from blockexport.bundle.layout import WEIGHTS_FILE
from blockexport.bundle.reader import open_bundle
from blockexport.bundle.weights import write_weights
from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.core.parity import tolerance_of
from blockexport.export.cut import cut
from blockexport.export.graph_file import save, shared_tensors
from blockexport.export.lower.ort import lower
from blockexport.export.trace import block_unit, trace
from blockexport.masking.masked import masked
from blockexport.masking.oracle import _InDouble
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.runtime import Runtime, load
from blockexport.runtime.engines import Engines, LevelFile
from blockexport.testing.tiny_models import VOCAB_SIZE, tiny_model

torch.set_num_threads(1)

NUM_BLOCKS = 4
# Rungs of one, one and two blocks; block 0 is not in all of them.
KEPT = {"d4": (0, 1, 2, 3), "d3": (0, 2, 3), "d2": (2, 3)}
_ATTENTION = "blockexport-test"


class _Rows(Cache):
    """What each block has seen, and nothing about what it has not."""

    def __init__(self) -> None:
        super().__init__(layers=[DummyLayer() for _ in range(NUM_BLOCKS)])
        self.rows: dict[int, tuple[torch.Tensor, ...]] = {}

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        new = (key_states, value_states)
        old = self.rows.get(layer_idx)
        self.rows[layer_idx] = new if old is None else tuple(torch.cat(pair, 2) for pair in zip(old, new, strict=True))
        return self.rows[layer_idx]


def _attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """Each token sees those that its block has seen before it; a window counts them."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scaling = kwargs.get("scaling")
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    distance = torch.arange(key.shape[2])[-query.shape[2] :, None] - torch.arange(key.shape[2])
    visible = (distance >= 0) & (distance < (kwargs.get("sliding_window") or key.shape[2]))
    return (scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value).transpose(1, 2), None


class EagerSession:
    """One row, continued by the stock model in fp64; all it remembers is what each block has seen, and when."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._cache = _Rows()
        self.seen: list[list[int]] = [[] for _ in range(NUM_BLOCKS)]
        self.tokens: list[int] = []

    def run(self, tokens: Sequence[int], level: str, *, fill: bool = True) -> NDArray[np.float64]:
        """Append tokens and run them, with what the level lacks before them if `fill`; logits (new, vocab)."""
        begin, kept = len(self.tokens), KEPT[level]
        if fill:
            begin = min(next((i for i in range(begin) if self.seen[b][i : i + 1] != [i]), begin) for b in kept)
            for block in kept:
                self.seen[block] = self.seen[block][:begin]
                if block in self._cache.rows:
                    self._cache.rows[block] = tuple(part[:, :, :begin] for part in self._cache.rows[block])
        self.tokens += tokens
        positions = range(begin, len(self.tokens))
        for block in kept:
            self.seen[block] += positions
        with masked(self._model, DepthMask.from_kept(kept, NUM_BLOCKS)), torch.no_grad(), _InDouble():
            output = self._model.module(
                input_ids=torch.tensor([self.tokens[begin:]]),
                position_ids=torch.tensor([positions]),
                past_key_values=self._cache,
            )
        logits: NDArray[np.float64] = output.logits[0, -len(tokens) :].numpy()
        return logits


@dataclass(frozen=True, slots=True)
class TinyLadder:
    """Engines of one architecture, and the same model for eager torch."""

    engines: Engines
    exact: LoadedModel
    by_block: LoadedModel
    tolerance: float

    def eager(self) -> EagerSession:
        """A session of the reference that can do whatever a runtime's can."""
        return EagerSession(self.by_block)

    def stock(self, tokens: Sequence[int], *spans: tuple[str, int]) -> NDArray[np.float64]:
        """Logits (tokens, vocab) of the stock model with its own cache; each level runs up to where its span ends."""
        cache, parts, begin = DynamicCache(config=self.exact.module.config), [], 0
        for level, end in spans:
            if end > begin:
                mask = DepthMask.from_kept(KEPT[level], NUM_BLOCKS)
                with masked(self.exact, mask), torch.no_grad(), _InDouble():
                    output = self.exact.module(
                        input_ids=torch.tensor([tokens[begin:end]]),
                        position_ids=torch.arange(begin, end)[None],
                        past_key_values=cache,
                    )
                parts.append(output.logits[0].numpy())
                begin = end
        return np.concatenate(parts)


def _in_double(model: LoadedModel) -> LoadedModel:
    return LoadedModel(copy.deepcopy(model.module).double(), model.spec, model.adapter)


def _tolerance(model: LoadedModel, exact: LoadedModel) -> float:
    """What fp32 rounding explains, measured on the eager model."""
    tokens = torch.from_numpy(np.random.default_rng(1).integers(1, VOCAB_SIZE, (4, 32)))
    with torch.no_grad():
        ours = model.module(input_ids=tokens).logits.numpy()
        with _InDouble():
            theirs = exact.module(input_ids=tokens).logits.numpy()
    return tolerance_of(ours, theirs)


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of levels d4, d3 and d2 of a tiny llama, with a file of the user's own."""
    from blockexport.pipeline.build import BuildOptions, build

    ladder = DepthLadder.from_masks([DepthMask.from_kept(kept, NUM_BLOCKS) for kept in KEPT.values()])
    out = tmp_path_factory.mktemp("built") / "bundle"
    build(tiny_model("llama", NUM_BLOCKS), ladder, out=out, options=BuildOptions(attachments={"extra.txt": b"hello"}))
    return out


def _engines(model: LoadedModel, folder: Path) -> Engines:
    """The same levels of another architecture, without the gates of a bundle."""
    marked = lower(trace(model))
    locations = write_weights(folder / WEIGHTS_FILE, shared_tensors(cut(marked, [])))
    files = {}
    for name, kept in KEPT.items():
        path = folder / f"{name}.ort.onnx"
        skipped = DepthMask.from_kept(kept, NUM_BLOCKS).skipped
        save(cut(marked, [block_unit(block) for block in skipped]), path, locations)
        files[name] = LevelFile(path, kept)
    return Engines(model.spec, files, threads=1)


@pytest.fixture(scope="session")
def ladder_of(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyLadder]:
    """`ladder_of(architecture)` gives levels d4, d3 and d2 of a tiny model; each architecture is traced once."""
    AttentionInterface.register(_ATTENTION, _attention)

    @cache
    def make(architecture: str) -> TinyLadder:
        model = wrap_module(tiny_model(architecture, NUM_BLOCKS))
        if architecture == "llama":
            engines = Engines.of_bundle(open_bundle(bundle_folder), threads=1)
        else:
            engines = _engines(model, tmp_path_factory.mktemp(architecture))
        exact, by_block = _in_double(model), _in_double(model)
        by_block.module.config._attn_implementation = _ATTENTION
        return TinyLadder(engines, exact, by_block, _tolerance(model, exact))

    return make


@pytest.fixture
def runtime(bundle_folder: Path) -> Runtime:
    """The bundle, freshly loaded, on one thread."""
    return load(bundle_folder, threads=1, verify=False)
