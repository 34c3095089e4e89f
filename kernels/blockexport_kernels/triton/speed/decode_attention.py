"""Is `decode_attention` faster than scaled_dot_product_attention, in whichever of its forms is fastest?"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from blockexport_kernels.triton.checks.decode_attention import Case, Inputs, make
from blockexport_kernels.triton.decode_attention import decode_attention
from blockexport_kernels.triton.speed.timing import OURS, Work

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def works(device: torch.device) -> list[Work[Inputs]]:
    """A layer of Qwen2-7B: short and long caches, one row and several, and a hole in the middle."""
    cases = [Case((length,) * batch) for batch, length in ((1, 1024), (1, 4096), (1, 16384), (8, 4096))]
    cases.append(Case((4096,), holes=(((1024, 3072),),)))
    return [work(case, device, kv_heads=4, head_dim=128) for case in cases]


def work(case: Case, device: torch.device, *, kv_heads: int, head_dim: int) -> Work[Inputs]:
    """All rows as long as the cache: libraries then need neither lengths nor, without holes, a mask."""
    length, batch = case.lengths[0], len(case.lengths)
    hidden = sum(end - first for first, end in case.holes[0]) if case.holes else 0
    mask = torch.ones((1, length), dtype=torch.bool, device=device)
    for first, end in case.holes[0] if case.holes else ():
        mask[:, first:end] = False

    def prepared(seed: int) -> Inputs:
        shape = {"group": case.group, "kv_heads": kv_heads, "head_dim": head_dim}
        made = make(Case(case.lengths, case.holes, **shape, dtype=torch.bfloat16, seed=seed), device)
        # A mask multiplies what it hides by 0, which makes no number of no number.
        made.keys.nan_to_num_()
        made.values.nan_to_num_()
        return made

    def ours(inputs: Inputs) -> Tensor:
        return inputs.call(decode_attention)

    libraries = {name: _library(backend, mask if hidden else None) for name, backend in _BACKENDS.items()}
    num_bytes = 2 * batch * kv_heads * (length - hidden) * head_dim * 2
    return Work(
        f"batch {batch}, {length} slots, {hidden} of them a hole", num_bytes, prepared, {OURS: ours, **libraries}
    )


def _library(backend: SDPBackend, mask: Tensor | None) -> Callable[[Inputs], Tensor]:
    def attend(inputs: Inputs) -> Tensor:
        inputs.keys[:, :, -1], inputs.values[:, :, -1] = inputs.key, inputs.value
        with sdpa_kernel(backend):
            query = inputs.query[:, :, None]
            out = scaled_dot_product_attention(query, inputs.keys, inputs.values, attn_mask=mask, enable_gqa=True)
        return out[:, :, 0]

    return attend
