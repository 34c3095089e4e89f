"""Packages of machine code in a bundle: who may run them, and only after their digests were compared."""

from blockexport.backends.aotinductor.host import check_host, host_demands
from blockexport.bundle.manifest import EngineEntry
from blockexport.bundle.reader import Bundle
from blockexport.errors import BackendUnavailableError, BundleError
from blockexport.runtime.others import OtherLevels

BACKEND = "aotinductor"
DEVICE = "cpu"


def packages_of(bundle: Bundle, device: str = DEVICE) -> dict[str, EngineEntry]:
    """By level name, the package for a device.

    Raises:
        BundleError: there is none.
    """
    found = {
        name: engine
        for name, level in bundle.manifest.all_levels.items()
        for engine in level.engines
        if (engine.backend, engine.target) == (BACKEND, device)
    }
    if not found:
        advice = f"build the bundle with --backend {BACKEND}, or use onnxruntime"
        msg = f"no level has a package for {BACKEND}/{device}; {advice}"
        raise BundleError(msg)
    return found


def open_packages(bundle: Bundle, *, threads: int = 0) -> OtherLevels:
    """Get ready to run a bundle's packages on the processor; loads torch.

    Every package's digest is compared here, whatever was compared before: a package is code.

    Args:
        bundle: where they are.
        threads: threads within an operator, for all of torch in this process; 0 leaves them as they are.

    Raises:
        BackendUnavailableError: torch is missing, or they were compiled for another version or processor.
        BundleError: there are none for the processor.
        IntegrityError: one was altered.
    """
    engines = packages_of(bundle)
    paths = {name: bundle.folder / engine.path for name, engine in engines.items()}
    for name, engine in engines.items():
        check_host(engine.requires, host_demands())
        bundle.check_file(paths[name])
    try:
        # The one place of the serving half that loads torch, and only when this backend was asked for.
        from blockexport.backends.aotinductor.levels import AotLevels  # noqa: PLC0415
    except ImportError as error:
        msg = f"backend {BACKEND!r} cannot be imported ({error}); install it with blockexport[build]"
        raise BackendUnavailableError(msg) from error
    signatures = {paths[name]: engine.signature for name, engine in engines.items()}
    return OtherLevels(AotLevels(bundle.weights_path, signatures, threads=threads), paths)
