"""An encoder or vision level in ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockexport.backends.onnxruntime.session import open_session


class OrtSinglePass:
    """One opened single-pass level.

    Args:
        path: the graph.
        threads: threads within an operator; 0 lets the runtime choose.
        library: operators beyond the runtime's own.
        session: the same graph, opened already.
    """

    def __init__(self, path: Path, *, threads: int = 0, library: Path | None = None, session: Any = None) -> None:
        self._session = session or open_session(path, threads=threads, library=library)
        self._names = [value.name for value in self._session.get_inputs()]

    def forward(self, inputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """Batch inputs to the model's only output; inputs that this graph does not take are left out."""
        output: NDArray[np.float32] = self._session.run(None, {name: inputs[name] for name in self._names})[0]
        return output
