"""transformers: eager with a growing cache, or compiled by inductor with a static one."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from runner import Continue, OnToken, Request, main
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache


def load(request: Request) -> tuple[Continue, Mapping[str, Any]]:
    """Load the checkpoint in fp32; the format says whether it is compiled."""
    torch.set_num_threads(request.threads)
    model = AutoModelForCausalLM.from_pretrained(request.model, dtype=torch.float32).eval()
    forward: Any = model
    is_compiled = request.format == "compile"
    if is_compiled:
        # Freezing lets inductor lay weights out for its own kernels, which is what its documentation advises on CPUs.
        torch._inductor.config.freezing = True  # noqa: SLF001
        forward = torch.compile(model, dynamic=False)
        static = StaticCache(config=model.config, max_cache_len=request.context_tokens)
        # A cache that comes into being in the first run is another cache in the second, and everything compiles anew.
        heads, size = model.config.num_key_value_heads, model.config.hidden_size // model.config.num_attention_heads
        static.early_initialization(1, heads, size, torch.float32, torch.device("cpu"))

    def generate(prompt: Sequence[int], new_tokens: int, on_token: OnToken) -> None:
        if is_compiled:
            cache: Any = static
            cache.reset()
        else:
            cache = DynamicCache(config=model.config)
        ids, position = torch.tensor([list(prompt)]), 0
        with torch.no_grad():
            for _ in range(new_tokens):
                places = torch.arange(position, position + ids.shape[1])[None]
                logits = forward(ids, position_ids=places, past_key_values=cache, logits_to_keep=1).logits
                position += ids.shape[1]
                ids = logits[:, -1].argmax(-1, keepdim=True)
                on_token(int(ids))

    return generate, {"freezing": is_compiled, "attention": model.config._attn_implementation}  # noqa: SLF001


if __name__ == "__main__":
    main(("torch", "transformers"), load)
