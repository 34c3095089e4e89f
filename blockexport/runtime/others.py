"""What runs the levels of a bundle in place of their graphs on the processor."""

from dataclasses import dataclass
from pathlib import Path

from blockexport.backends.onnxruntime.device import DeviceLevels
from blockexport.bundle.reader import Bundle
from blockexport.core.engine import LevelOpener

_BACKEND = "onnxruntime"
_TARGET = "ort"


@dataclass(frozen=True, slots=True, eq=False)
class OtherLevels:
    """Another backend, or another device.

    Attributes:
        opener: opens the files; they share one set of weights.
        paths: by level name, behind `VISION_PREFIX` for a vision level, its file.
    """

    opener: LevelOpener
    paths: dict[str, Path]


def on_cuda(bundle: Bundle) -> OtherLevels:
    """Get ready to run a bundle's graphs on a GPU.

    Raises:
        BackendUnavailableError: ONNX Runtime has no CUDA provider here, or cannot load it.
        BundleError: not even the shallowest level fits the GPU.
    """
    opener = DeviceLevels()
    paths = {name: bundle.engine_path(name, _BACKEND, _TARGET) for name in bundle.manifest.all_levels}
    # Whether a provider can be loaded shows when a session is opened. The weights stay for the other levels.
    opener.session(paths[bundle.manifest.levels[-1].name])
    return OtherLevels(opener, paths)
