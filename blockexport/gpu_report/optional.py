"""Parts that bring checks of their own: `run_checks(device)` gives dicts of `id`, `status`, `why` and `metrics`."""

from collections.abc import Iterator
from importlib import import_module

from blockexport.errors import BackendUnavailableError
from blockexport.gpu_report.finding import Finding


def findings_of(module: str, name: str) -> Iterator[Finding]:
    """What a module's own checks find on the GPU.

    Raises:
        BackendUnavailableError: the module brings none.
        ImportError: it is not there, or something that it needs is not.
    """
    run_checks = getattr(import_module(module), "run_checks", None)
    if run_checks is None:
        msg = f"{module} brings no checks for a GPU"
        raise BackendUnavailableError(msg)
    for found in run_checks("cuda"):
        yield Finding(
            f"{name}:{found['id']}", "gpu", found["status"], found.get("why", ""), dict(found.get("metrics", {}))
        )
