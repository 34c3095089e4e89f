"""Which host a figure was measured on: a profile of one host says nothing about another."""

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

# What runs an engine; what only builds one may change without making a profile stale.
_RELEVANT_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "numpy", "tensorrt", "tensorrt-rtx")


class HostFingerprint(BaseModel):
    """Hardware and versions that decide latency."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    cpu_features: tuple[str, ...]
    num_cpus: int
    system: str
    python: str
    packages: dict[str, str]

    @classmethod
    def detect(cls) -> Self:
        """Read this host."""
        cpu, features = _read_cpu()
        return cls(
            cpu=cpu,
            cpu_features=features,
            num_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            system=f"{platform.system()} {platform.machine()}",
            python=platform.python_version(),
            packages=installed_versions(_RELEVANT_PACKAGES),
        )

    @property
    def key(self) -> str:
        """Short file name for this host: equal fingerprints give equal keys."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The fingerprint as reports print it."""
        return self.model_dump(mode="json")


def installed_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of those packages that are installed, read without importing them."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _read_cpu() -> tuple[str, tuple[str, ...]]:
    fields: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    # Only the vector extensions change which kernels a runtime picks.
    prefixes = ("avx", "amx", "fma", "asimd", "sve", "bf16", "i8mm")
    relevant = tuple(sorted(flag for flag in flags if flag.startswith(prefixes)))
    return fields.get("model name") or platform.processor() or platform.machine(), relevant
