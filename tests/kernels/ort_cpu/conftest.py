"""The compiled library, once for each path that this processor has, and small graphs of one operator."""

import ctypes
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from blockexport_kernels.ort_cpu.library import DOMAIN, PATH_VARIABLE, NativeBuildError, find_or_build, path_of

MakeGraph = Callable[..., ir.Model]
OpenSession = Callable[..., ort.InferenceSession]
RunOperator = Callable[..., list[np.ndarray]]


@pytest.fixture(scope="session")
def library(pytestconfig: pytest.Config) -> Path:
    """The library that takes the fastest path, compiled again only if its sources changed."""
    try:
        return find_or_build(pytestconfig.cache.mkdir("ort_cpu"))
    except NativeBuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=["scalar", "avx2", "avx512"])
def on_path(request: pytest.FixtureRequest, library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the library, loaded so that it takes one path: the loader knows libraries by their files."""
    copy = tmp_path_factory.mktemp("path") / f"{request.param}.so"
    shutil.copy(library, copy)
    before = os.environ.get(PATH_VARIABLE)
    os.environ[PATH_VARIABLE] = request.param
    try:
        ctypes.CDLL(str(copy))  # reads the variable; stays loaded for the sessions
    finally:
        del os.environ[PATH_VARIABLE]
        if before is not None:
            os.environ[PATH_VARIABLE] = before
    if path_of(copy) != request.param:
        pytest.skip(f"this processor has no {request.param}")
    return copy


def _attribute(name: str, value: float) -> ir.Attr:
    return ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrFloat32(name, value)


def graph(
    op: str,
    inputs: dict[str, np.ndarray | None],
    *,
    attributes: dict[str, int | float] | None = None,
    fed: tuple[str, ...] = ("A",),
    num_outputs: int = 1,
    domain: str = DOMAIN,
) -> ir.Model:
    """A model of one operator; inputs that are not fed are initializers, and None stands for one left out."""
    values: dict[str, ir.Value | None] = {}
    for name, array in inputs.items():
        if array is None:
            values[name] = None
            continue
        tensor = ir.tensor(array, name=name)
        values[name] = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape([None] * array.ndim))
        if name not in fed:
            values[name] = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    outputs = [ir.Value(name=f"y{i}", type=ir.TensorType(ir.DataType.FLOAT)) for i in range(num_outputs)]
    node = ir.Node(
        domain,
        op,
        list(values.values()),
        attributes=[_attribute(name, value) for name, value in (attributes or {}).items()],
        outputs=outputs,
    )
    given = {name: value for name, value in values.items() if value is not None}
    body = ir.Graph(
        [given[name] for name in fed],
        outputs,
        nodes=[node],
        initializers=[value for name, value in given.items() if name not in fed],
        opset_imports={"": 21, "com.microsoft": 1, DOMAIN: 1},
        name="one_operator",
    )
    return ir.Model(body, ir_version=10)


def session(model: ir.Model | Path, library: Path | None, *, threads: int = 2) -> ort.InferenceSession:
    """A session with the operators, or without for ONNX Runtime's own."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if library is not None:
        options.register_custom_ops_library(str(library))
    source: Any = str(model) if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _run(library: Path | None, op: str, inputs: dict[str, np.ndarray | None], **settings: Any) -> list[np.ndarray]:
    fed = settings.get("fed", ("A",))
    opened = session(graph(op, inputs, **settings), library)
    return [np.asarray(out) for out in opened.run(None, {name: inputs[name] for name in fed})]


@pytest.fixture(scope="session")
def make_graph() -> MakeGraph:
    return graph


@pytest.fixture(scope="session")
def open_session() -> OpenSession:
    return session


@pytest.fixture(scope="session")
def run() -> RunOperator:
    """Outputs of one operator: run(library or None for ONNX Runtime's own, op, inputs, **settings of graph)."""
    return _run
