"""Random quantised matrices, in the layout of `com.microsoft::MatMulNBits`."""

import numpy as np

from blockexport_kernels.ort_cpu.reference import Quantised


def random_quantised(rng: np.random.Generator, n: int, k: int, bits: int, block: int, *, zeros: bool) -> Quantised:
    """A matrix (n, k) of any codes, with zero points of its own or the default one."""
    blocks = -(-k // block)
    return Quantised(
        codes=rng.integers(0, 256, (n, blocks, block * bits // 8), dtype=np.uint8),
        scales=(rng.random((n, blocks)) * 0.02 + 1e-3).astype(np.float32),
        zeros=rng.integers(0, 256, (n, -(-blocks * bits // 8)), dtype=np.uint8) if zeros else None,
        k=k,
        bits=bits,
        block_size=block,
    )
