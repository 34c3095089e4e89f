"""`blockexport doctor`."""

from collections.abc import Callable
from importlib import util
from typing import Any

from blockexport.cli.output import Output
from blockexport.cli.verb import JsonFlag, Result, verb
from blockexport.errors import BackendUnavailableError

_BUILD_PACKAGES = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript")
_SHOWN_PACKAGES = (
    "blockexport",
    "torch",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "scikit-learn",
    "matplotlib",
    "tokenizers",
    "numpy",
)


@verb
def doctor(as_json: JsonFlag = False) -> Result:
    """Say what this host can build and run, and why not."""
    from blockexport.core.hardware import HostFingerprint, installed_versions
    from blockexport.pipeline.cache import default_cache_folder

    host = HostFingerprint.detect()
    value = {
        "backends": [_onnxruntime(), _onnxruntime_cuda(), _aotinductor()],
        "host": host.to_json(),
        "packages": installed_versions(_SHOWN_PACKAGES),
        "cache": str(default_cache_folder()),
    }
    return Result(value, lambda output: _show(output, value))


def _onnxruntime() -> dict[str, Any]:
    from blockexport.backends.onnxruntime.session import import_onnxruntime

    missing = [name for name in _BUILD_PACKAGES if util.find_spec(name) is None]
    problems = [f"cannot build: {', '.join(missing)} missing, install blockexport[build]"] if missing else []
    try:
        import_onnxruntime()
        runs = True
    except BackendUnavailableError as error:
        runs = False
        problems.append(f"cannot run: {error}")
    # A build proves its engines by running them.
    return {"name": "onnxruntime", "build": runs and not missing, "run": runs, "why": "; ".join(problems)}


def _onnxruntime_cuda() -> dict[str, Any]:
    from blockexport.backends.onnxruntime.providers import cuda, require_provider
    from blockexport.backends.onnxruntime.session import import_onnxruntime

    why = _refusal(lambda: require_provider(import_onnxruntime(), cuda()))
    # The same graphs run on either device: there is nothing else to build.
    return {"name": "onnxruntime-cuda", "build": False, "run": not why, "why": why}


def _aotinductor() -> dict[str, Any]:
    from blockexport.backends.aotinductor.host import find_compiler, torch_version

    cannot_run = _refusal(torch_version)
    cannot_build = cannot_run or _refusal(find_compiler)
    return {"name": "aotinductor", "build": not cannot_build, "run": not cannot_run, "why": cannot_build}


def _refusal(check: Callable[[], object]) -> str:
    """What the check says against this host; "" for nothing."""
    try:
        check()
    except BackendUnavailableError as error:
        return str(error)
    return ""


def _show(output: Output, value: dict[str, Any]) -> None:
    rows = [(entry["name"], entry["build"], entry["run"], entry["why"]) for entry in value["backends"]]
    output.table("Backends", ("backend", "build", "run", "why not"), rows)
    output.table("Packages", ("package", "version"), list(value["packages"].items()))
    host = value["host"]
    output.line(f"host: {host['cpu']}, {host['num_cpus']} CPUs, {host['system']}, Python {host['python']}")
    output.line(f"cache: {value['cache']}")
