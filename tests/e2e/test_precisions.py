"""Bundles whose weights are in bf16, all levels or one, held to eager models that were rounded by torch itself."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import blockexport as bx
from blockexport.backends.onnxruntime.operators import native_library
from blockexport.bundle.weights import read_locations
from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.core.precision import Precision
from blockexport.errors import BackendUnavailableError
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.pipeline.build import BuildOptions
from blockexport.runtime.verify import verify_bundle
from blockexport.testing.tiny_models import tiny_inputs, tiny_model

NUM_BLOCKS = 3
LADDER = DepthLadder.from_masks([DepthMask.from_kept(kept, NUM_BLOCKS) for kept in ((0, 1, 2), (0, 2), (0,))])
BF16, INT4 = Precision.parse("bf16"), Precision.parse("int4g16")
# fp32 rounding shows as some 2e-6 here; what rounding to bf16 changes is checked to be far above.
TOLERANCE = 2e-5
# Tensors this small lie in the graphs.
MAX_INLINE_BYTES = 64

pytestmark = pytest.mark.slow


def _rounded(model: LoadedModel) -> LoadedModel:
    """A copy whose linear layers and word embedding hold what bf16 can hold."""
    module = copy.deepcopy(model.module)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | Conv1D)]
    for layer in [*layers, module.get_input_embeddings()]:
        layer.weight.data = layer.weight.data.bfloat16().float()
    return wrap_module(module)


def _kinds_of_operators() -> list[str]:
    try:
        native_library()
    except BackendUnavailableError:
        return ["stock"]
    return ["stock", "native"]


def _require_sound(bundle: Path, levels: int) -> None:
    checks = verify_bundle(bundle)
    assert {check.status for check in checks if check.id != "parity:native"} == {"ok"}
    proved = {check.id.split(":")[1] for check in checks if check.id.startswith("parity:d")}
    assert len(proved) == levels


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "bert"])
def test_levels_in_bf16_answer_as_the_rounded_model(architecture: str, tmp_path: Path) -> None:
    model = wrap_module(tiny_model(architecture, NUM_BLOCKS))
    bx.build(model, LADDER, out=tmp_path / "bundle", options=BuildOptions(precision=BF16))
    _require_sound(tmp_path / "bundle", len(LADDER.levels))
    inputs = tiny_inputs(model.module, batch_size=2)
    reference = _rounded(model)
    for operators in _kinds_of_operators():
        runtime = bx.load(tmp_path / "bundle", operators=operators)
        for level in LADDER.levels:
            found = runtime.forward({name: tensor.numpy() for name, tensor in inputs.items()}, level=level.name)
            assert runtime.engines.operators(level.name) == operators
            real = inputs["attention_mask"].numpy().astype(bool)
            differences = []
            for eager in (reference, model):
                with torch.no_grad(), bx.masked(eager, level.mask):
                    wanted = getattr(eager(**inputs), model.spec.output).numpy()
                differences.append(np.abs(found - wanted)[real].max())
            assert differences[0] < TOLERANCE
            assert differences[1] > 10 * TOLERANCE, "the test could not tell rounded weights from others"


def test_bf16_halves_the_weight_file(tmp_path: Path) -> None:
    """All that is a matrix of a linear layer or the embedding takes two bytes a number; norms and biases take four."""
    model = wrap_module(tiny_model("qwen2", NUM_BLOCKS))
    bx.build(model, LADDER, out=tmp_path / "bundle", options=BuildOptions(precision=BF16))
    stored = read_locations(tmp_path / "bundle" / "weights.safetensors")
    for name, parameter in model.module.named_parameters():
        if parameter.ndim == 2:
            assert stored[f"{name}.bf16"].size_bytes == 2 * parameter.numel()
            assert name not in stored
        elif parameter.nbytes > MAX_INLINE_BYTES:
            assert stored[name].size_bytes == 4 * parameter.numel()


def test_each_level_has_the_precision_that_was_asked_for(tmp_path: Path) -> None:
    model = wrap_module(tiny_model("qwen2", NUM_BLOCKS))
    options = BuildOptions(precision={"d3": BF16, "d1": INT4})
    bundle = bx.build(model, LADDER, out=tmp_path / "bundle", options=options)
    assert [str(level.precision) for level in bundle.manifest.levels] == ["bf16", "fp32", "int4g16"]
    _require_sound(tmp_path / "bundle", len(LADDER.levels))
    runtime = bx.load(tmp_path / "bundle")
    tokens = np.random.default_rng(0).integers(1, model.spec.vocab_size, (1, 8))
    # One cache for all of them: a level of one precision goes on where one of another stopped.
    session = runtime.start(tokens, level="d3")
    for level in ("d3", "d2", "d1"):
        session.switch(level)
        session.step()
