"""Opening a bundle for use."""

from collections.abc import Sequence
from pathlib import Path

from blockexport.backends.onnxruntime.operators import STOCK, OperatorChoice, choose_operators
from blockexport.bundle.reader import Bundle, open_bundle
from blockexport.errors import ConfigError
from blockexport.runtime import compiled
from blockexport.runtime.compiled import open_packages
from blockexport.runtime.engines import BACKEND
from blockexport.runtime.others import OtherLevels, on_cuda
from blockexport.runtime.packed_cache import PackedCache
from blockexport.runtime.runtime import KV_STEP_TOKENS, Runtime


def load(
    path: str | Path,
    *,
    threads: int = 0,
    verify: bool = True,
    warm_up: Sequence[str] = (),
    kv_tokens: int = KV_STEP_TOKENS,
    operators: OperatorChoice = "auto",
    packed: bool | None = None,
    backend: str = BACKEND,
    device: str = "cpu",
) -> Runtime:
    """Open a bundle.

    Args:
        path: the bundle's folder.
        threads: threads within an operator; 0 lets the backend choose.
        verify: whether every file's digest is compared before anything is opened.
        warm_up: levels that are opened now.
        kv_tokens: tokens of each row that the cache holds at first, and by which it grows.
        operators: `native` for ours, which share one copy of the weights between levels and are compiled once a host;
            `stock` for those of ONNX Runtime; `auto` for ours where they can be had and are faster.
        packed: whether stock operators use weights packed once for all levels, kept in this host's cache: True makes
            them if they are not there, which takes several times as long as opening a level; None uses them if they
            are there. Native operators need none.
        backend: who runs the levels. `aotinductor` runs the packages that a bundle was built with, needs torch, and
            compares their digests whatever `verify` says.
        device: where the graphs run. On `cuda` the weights lie there once for all levels, and the cache crosses over in
            each call; a level that finds no room there, or does not give the recorded answers, runs on the processor.

    Returns:
        A runtime; its other levels are opened when they are first used.

    Raises:
        BackendUnavailableError: native operators are asked for and cannot be had, or the backend cannot run here.
        BundleError: the folder is no bundle or was built without the backend, packed weights are asked for and cannot
            be made, or this host cannot open a level's engine.
        ConfigError: there is no such backend, or not on that device.
        IntegrityError: the bundle is damaged.
        RequestError: there is no such level, or no room in the cache.
        SchemaVersionError: the bundle is of a format that this version cannot read.
    """
    bundle = open_bundle(Path(path), verify=verify)
    others = _others(bundle, backend, device, threads)
    chosen = choose_operators(operators)
    levels = None
    if others is None and chosen == STOCK and packed is not False:
        cache = PackedCache()
        levels = cache.open(bundle, threads=threads) if packed else cache.find(bundle)
    runtime = Runtime(bundle, threads=threads, kv_tokens=kv_tokens, operators=chosen, packed=levels, others=others)
    runtime.warm_up(warm_up)
    return runtime


def _others(bundle: Bundle, backend: str, device: str, threads: int) -> OtherLevels | None:
    if (backend, device) == (BACKEND, "cpu"):
        return None
    if (backend, device) == (BACKEND, "cuda"):
        return on_cuda(bundle)
    if (backend, device) == (compiled.BACKEND, compiled.DEVICE):
        return open_packages(bundle, threads=threads)
    allowed = "onnxruntime on cpu or cuda, or aotinductor on cpu"
    msg = f"backend {backend!r} on device {device!r} is unknown; choose {allowed}"
    raise ConfigError(msg)
