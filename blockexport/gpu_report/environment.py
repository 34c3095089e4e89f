"""Where a report was made."""

import platform
from dataclasses import asdict
from typing import Any

from blockexport.core.hardware import HostFingerprint, installed_versions
from blockexport.errors import BackendUnavailableError
from blockexport.gpu_report.driver import find_gpu

_PACKAGES = (
    "blockexport",
    "torch",
    "transformers",
    "triton",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "tensorrt-rtx-cu13",
)


def describe_host() -> dict[str, Any]:
    """GPU, driver, processor and versions; `why_no_gpu` in the loader's own words where there is none."""
    host = HostFingerprint.detect()
    found: dict[str, Any] = {
        "gpu": None,
        "cpu": host.cpu,
        "num_cpus": host.num_cpus,
        "system": host.system,
        "python": platform.python_version(),
        "packages": installed_versions(_PACKAGES),
    }
    try:
        found["gpu"] = asdict(find_gpu())
    except BackendUnavailableError as error:
        found["why_no_gpu"] = str(error)
    return found
