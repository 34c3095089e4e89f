"""A decoder in the shape of MolmoE-1B's text stack with random weights, and engines of it.

16 blocks, 64 experts of which each token is sent to 8. The published width of 2048 holds 28 GB of weights in fp32; a
narrower one keeps the proportions: an expert has half the width, and the vocabulary shrinks with the width, so that the
head has about the share of a step that it has at full width.
"""

import gc
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

from blockexport.backends.onnxruntime.operators import STOCK, choose_operators
from blockexport.bundle.layout import WEIGHTS_FILE
from blockexport.bundle.weights import write_weights
from blockexport.core.precision import Precision
from blockexport.export.cut import cut
from blockexport.export.graph_file import save, shared_tensors
from blockexport.export.lower import ort
from blockexport.export.trace import block_unit, trace
from blockexport.models.loaded import LoadedModel, wrap_module
from blockexport.pipeline.sources import Source
from blockexport.runtime.engines import Engines, LevelFile

NUM_BLOCKS, NUM_EXPERTS, CHOSEN = 16, 64, 8
FULL_WIDTH, FULL_VOCABULARY = 2048, 50_304
# Evenly spread, each depth within the next.
KEPT: Mapping[int, tuple[int, ...]] = {
    16: tuple(range(NUM_BLOCKS)),
    12: tuple(block for block in range(NUM_BLOCKS) if block % 4 != 3),
}


def make_model(width: int) -> LoadedModel:
    """The model at a width."""
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=FULL_VOCABULARY * width // FULL_WIDTH,
        hidden_size=width,
        intermediate_size=width // 2,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=16,
        num_key_value_heads=16,
        num_experts=NUM_EXPERTS,
        num_experts_per_tok=CHOSEN,
        norm_topk_prob=False,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        eos_token_id=None,
    )
    return wrap_module(OlmoeForCausalLM(config).eval())


def mark(model: LoadedModel) -> ir.Model:
    """The graph that all depths and precisions are made of."""
    return ort.lower(trace(model))


def write_engines(
    model: LoadedModel, marked: ir.Model, precision: str, folder: Path, threads: int
) -> dict[str, Engines]:
    """Engines of all depths over one weight file, by kind of operators; not proved, unlike those of a build."""
    source = Source.of(marked, Precision.parse(precision))
    levels = {
        (target, depth): cut(graph, [block_unit(block) for block in range(NUM_BLOCKS) if block not in kept])
        for target, graph in source.graphs.items()
        for depth, kept in KEPT.items()
    }
    tensors = {name: tensor for graph in levels.values() for name, tensor in shared_tensors(graph).items()}
    locations = write_weights(folder / WEIGHTS_FILE, tensors)
    for (target, depth), graph in levels.items():
        save(graph, folder / f"d{depth}.{target}.onnx", locations)
    del source, levels, tensors
    gc.collect()
    engines = {}
    for name, operators in {"stock": STOCK, "native": choose_operators("native")}.items():
        files = {
            f"d{depth}": LevelFile(folder / f"d{depth}.{operators.target}.onnx", kept, operators.library)
            for depth, kept in KEPT.items()
        }
        engines[name] = Engines(model.spec, files, threads=threads)
    return engines


def active_bytes(model: LoadedModel, precision: str, depth: int) -> int:
    """Weights that one decode step reads: of each block what is not an expert and 8 experts, and the head."""
    config = model.module.config
    width, inner = config.hidden_size, config.intermediate_size
    experts = CHOSEN * 3 * width * inner
    others = 4 * width * width
    head = config.vocab_size * width
    chosen = Precision.parse(precision)
    quantised = depth * (experts + others) + head
    router = depth * NUM_EXPERTS * width * 4
    if not chosen.is_quantised:
        return quantised * 4 + router
    return quantised * chosen.bits // 8 + quantised // chosen.block_size * 4 + router
