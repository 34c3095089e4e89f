"""What several kernels call."""

import triton
import triton.language as tl

from blockexport_kernels.triton.registration import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def dot(a, b, total):
    """`total` + a b, exact products added up in fp32."""
    if _INTERPRETED:
        # It would multiply the bits of bf16 numbers as integers. Widening changes no product.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")
