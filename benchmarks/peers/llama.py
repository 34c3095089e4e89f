"""llama.cpp through the C functions that llama-cpp-python binds.

The GGUF file is written with llama.cpp's own `gguf` package, and quantised by llama.cpp itself.
"""

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from runner import Continue, OnToken, Request, main
from safetensors import safe_open
from transformers import AutoConfig

FTYPES = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}
FILE = "model.gguf"


def convert(checkpoint: Path, weights: str, out: Path) -> None:
    """Write fp32, then quantise; `_pure` behind a format means the head too."""
    full = out / "f32.gguf"
    _write_fp32(checkpoint, full)
    if weights == "f32":
        full.rename(out / FILE)
        return
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FTYPES[weights.removesuffix("_pure")]
    params.pure = weights.endswith("_pure")
    failed = llama_cpp.llama_model_quantize(bytes(full), bytes(out / FILE), ctypes.byref(params))
    full.unlink()
    if failed:
        msg = f"llama.cpp cannot quantise to {weights}: {failed}"
        raise RuntimeError(msg)


def _write_fp32(checkpoint: Path, path: Path) -> None:
    config = AutoConfig.from_pretrained(checkpoint)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    with safe_open(checkpoint / "model.safetensors", "numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (no mapping)
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensors.get_tensor(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(request: Request) -> tuple[Continue, Mapping[str, Any]]:
    """Load a GGUF file."""
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(bytes(request.model / FILE), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = request.context_tokens
    params.n_threads = params.n_threads_batch = request.threads
    context = llama_cpp.llama_init_from_model(model, params)
    num_logits = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def run(tokens: Sequence[int]) -> int:
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(ids, len(tokens))):
            msg = "llama_decode failed"
            raise RuntimeError(msg)
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(logits, (num_logits,)).argmax())

    def generate(prompt: Sequence[int], new_tokens: int, on_token: OnToken) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        tokens = list(prompt)
        for _ in range(new_tokens):
            tokens = [run(tokens)]
            on_token(tokens[0])

    return generate, {"n_batch": request.context_tokens, "kv": "f16", "flash_attention": "auto"}


if __name__ == "__main__":
    main(("llama-cpp-python", "gguf"), load, convert)
