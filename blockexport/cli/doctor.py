"""`blockexport doctor`."""

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
        "backends": [_onnxruntime()],
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


def _show(output: Output, value: dict[str, Any]) -> None:
    rows = [(entry["name"], entry["build"], entry["run"], entry["why"]) for entry in value["backends"]]
    output.table("Backends", ("backend", "build", "run", "why not"), rows)
    output.table("Packages", ("package", "version"), list(value["packages"].items()))
    host = value["host"]
    output.line(f"host: {host['cpu']}, {host['num_cpus']} CPUs, {host['system']}, Python {host['python']}")
    output.line(f"cache: {value['cache']}")
