"""Opening ONNX Runtime sessions."""

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from blockexport.backends.onnxruntime.providers import CPU, Providers, require_in_use, require_provider
from blockexport.errors import BackendUnavailableError, BundleError

_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")


def import_onnxruntime() -> Any:
    """The `onnxruntime` module.

    Raises:
        BackendUnavailableError: it is not installed, or both of its distributions are.
    """
    present = [name for name in _DISTRIBUTIONS if _is_installed(name)]
    if len(present) > 1:
        msg = (
            f"{' and '.join(present)} are both installed and overwrite each other's files; "
            "uninstall both, then install the one you want with blockexport[ort] or blockexport[ort-gpu]"
        )
        raise BackendUnavailableError(msg)
    try:
        import onnxruntime  # noqa: PLC0415  (optional package)
    except ImportError as error:
        msg = f"backend 'onnxruntime' cannot be imported ({error}); install it with blockexport[ort]"
        raise BackendUnavailableError(msg) from error
    return onnxruntime


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def open_session(
    path: Path,
    *,
    threads: int = 0,
    library: Path | None = None,
    save_packed: Path | None = None,
    providers: Providers = CPU,
    initializers: Mapping[str, Any] | None = None,
) -> Any:
    """Open one graph, on the CPU if nothing else is said.

    Args:
        path: the ONNX file; its weights lie in the same folder.
        threads: threads within an operator; 0 lets the runtime choose.
        library: operators beyond the runtime's own.
        save_packed: where to write the graph as the runtime has optimised it; beside it, under the same name with
            `.bin`, its weights and what the kernels packed them into.
        providers: who computes; the session is refused if another one would.
        initializers: by name, values to use in place of reading them from the file.

    Raises:
        BackendUnavailableError: the provider is not there, or the runtime would do without it in silence.
        BundleError: the runtime refuses the graph.
    """
    runtime = import_onnxruntime()
    require_provider(runtime, providers)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for key, entry in providers.session_entries.items():
        options.add_session_config_entry(key, entry)
    if save_packed is not None:
        options.optimized_model_filepath = str(save_packed)
        weights_name = save_packed.with_suffix(".bin").name
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights_name)
        options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    try:
        if library is not None:
            options.register_custom_ops_library(str(library))
        for name, value in (initializers or {}).items():
            options.add_initializer(name, value)
        session = runtime.InferenceSession(str(path), options, providers=[(providers.name, providers.options)])
    except Exception as error:
        # The runtime raises a private class of its own for each kind of failure.
        advice = "rebuild the bundle with it" if save_packed is None else f"make room in {save_packed.parent}"
        msg = f"ONNX Runtime {runtime.__version__} cannot open {path.name}: {error}; {advice}"
        raise BundleError(msg) from error
    require_in_use(session, providers)
    # The runtime knows their addresses and does not keep them alive.
    session.initializers = initializers
    give_back_memory()
    return session


def give_back_memory() -> None:
    """Return to the system what was freed: packing weights leaves holes as large as the weights in glibc's heap.

    Other C libraries, which lack the call, are left alone.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
