import json
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from blockexport.bundle.weights import TensorLocation, read_locations, write_weights
from blockexport.errors import BundleError, IntegrityError

DTYPES = ["bool", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8", ">f4", ">i8"]
ARRAYS = hnp.arrays(
    st.sampled_from(DTYPES).map(np.dtype), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9)
)
NAMES = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda name: not name.startswith("__"))
TENSORS = st.dictionaries(NAMES, ARRAYS, max_size=8)


def read_at(path: Path, location: TensorLocation, like: NDArray[Any]) -> NDArray[Any]:
    raw = path.read_bytes()[location.offset : location.offset + location.size_bytes]
    return np.frombuffer(raw, like.dtype.newbyteorder("<")).reshape(like.shape)


def assert_same_bits(left: NDArray[Any], right: NDArray[Any]) -> None:
    assert left.shape == right.shape
    # NaN payloads and the sign of zero count.
    native = right.dtype.newbyteorder("<")
    assert left.astype(native).tobytes() == right.astype(native).tobytes()


@given(TENSORS)
@settings(deadline=None)
def test_every_tensor_lies_where_the_map_says_and_safetensors_agrees(tensors: dict[str, NDArray[Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        locations = write_weights(path, tensors)
        assert locations == read_locations(path)
        assert set(locations) == set(tensors)
        loaded = load_file(path)
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        aliases = json.loads(header["__metadata__"]["aliases"])
        for name, tensor in tensors.items():
            assert locations[name].offset % 64 == 0
            assert locations[name].size_bytes == tensor.nbytes
            assert_same_bits(read_at(path, locations[name], tensor), tensor)
            stored = loaded[aliases.get(name, name)]
            # Names that share bytes may differ in shape; the file holds the shape of the first.
            assert_same_bits(stored.reshape(tensor.shape) if name in aliases else stored, tensor)
        assert [entry.name for entry in Path(folder).iterdir()] == [path.name]


@given(TENSORS, st.randoms())
@settings(max_examples=30, deadline=None)
def test_bytes_do_not_depend_on_order(tensors: dict[str, NDArray[Any]], shuffle: random.Random) -> None:
    turned = list(tensors.items())
    shuffle.shuffle(turned)
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder) / "a", tensors)
        write_weights(Path(folder) / "b", dict(turned))
        assert (Path(folder) / "a").read_bytes() == (Path(folder) / "b").read_bytes()


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    big = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    locations = write_weights(
        tmp_path / "w",
        {
            "embed": big,
            "head": big.copy(),
            "same_bits_other_shape": big.reshape(32, 128),
            "same_bits_other_type": big.view(np.int32),
        },
    )
    assert locations["embed"] == locations["head"] == locations["same_bits_other_shape"]
    assert len({location.offset for location in locations.values()}) == 2
    assert set(load_file(tmp_path / "w")) == {"embed", "same_bits_other_type"}
    assert (tmp_path / "w").stat().st_size < 2 * big.nbytes + 1024


def test_zeros_of_other_sign_are_not_equal(tmp_path: Path) -> None:
    locations = write_weights(tmp_path / "w", {"a": np.zeros(16, np.float32), "b": -np.zeros(16, np.float32)})
    assert locations["a"].offset != locations["b"].offset


def test_tensors_of_whole_lines_need_no_padding(tmp_path: Path) -> None:
    write_weights(
        tmp_path / "w",
        {"a": np.zeros((4, 16), np.float32), "b": np.ones((4, 16), np.float32), "c": np.zeros(3, np.int8)},
    )
    assert set(load_file(tmp_path / "w")) == {"a", "b", "c"}


def test_views_and_strides(tmp_path: Path) -> None:
    base = np.arange(60, dtype=np.float32).reshape(6, 10)
    tensors = {"transposed": base.T, "strided": base[::2, ::-3]}
    locations = write_weights(tmp_path / "w", tensors)
    for name, tensor in tensors.items():
        assert_same_bits(read_at(tmp_path / "w", locations[name], tensor), tensor)


def test_bfloat16(tmp_path: Path) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    tensor = np.array([1.5, -2.0, 3e38], np.float32).astype(bfloat16)
    location = write_weights(tmp_path / "w", {"t": tensor})["t"]
    raw = (tmp_path / "w").read_bytes()[location.offset : location.offset + location.size_bytes]
    assert raw == tensor.tobytes()
    assert b'"BF16"' in (tmp_path / "w").read_bytes()


class Lazy(Mapping[str, NDArray[Any]]):
    """Loads a tensor each time it is asked for and counts how many live at once."""

    def __init__(self, count: int) -> None:
        self.count, self.alive, self.most = count, 0, 0

    def __getitem__(self, name: str) -> NDArray[Any]:
        counter = self

        class Tracked(np.ndarray[Any, Any]):
            def __del__(self) -> None:
                if getattr(self, "tracked", False):
                    counter.alive -= 1

        tensor = np.full((1000,), float(name), np.float32).view(Tracked)
        tensor.tracked = True  # type: ignore[attr-defined]
        self.alive += 1
        self.most = max(self.most, self.alive)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return (str(i) for i in range(self.count))

    def __len__(self) -> int:
        return self.count


def test_tensors_are_streamed(tmp_path: Path) -> None:
    tensors = Lazy(20)
    assert len(write_weights(tmp_path / "w", tensors)) == 20
    # While the next one is loaded the last one may still be bound.
    assert tensors.most <= 2


class Changing(dict[str, NDArray[Any]]):
    def __getitem__(self, name: str) -> NDArray[Any]:
        self.looks = getattr(self, "looks", 0) + 1
        return np.zeros(self.looks, np.float32)


def test_a_tensor_that_changes_is_noticed_and_the_old_file_stays(tmp_path: Path) -> None:
    write_weights(tmp_path / "w", {"a": np.zeros(1)})
    before = (tmp_path / "w").read_bytes()
    with pytest.raises(BundleError, match="changed its size"):
        write_weights(tmp_path / "w", Changing(a=np.zeros(1)))
    assert (tmp_path / "w").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["w"]


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("__pad_0", np.zeros(1)),
        ("__metadata__", np.zeros(1)),
        ("a", np.zeros(1, complex)),
        ("a", np.array(["x"])),
        ("a", np.array([None])),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path: Path, name: str, tensor: NDArray[Any]) -> None:
    with pytest.raises(BundleError, match=r"reserved|weight files hold"):
        write_weights(tmp_path / "w", {name: tensor})
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No such file"):
        write_weights(tmp_path / "none" / "w", {"a": np.zeros(1)})


def with_header(header: Any, data: bytes = b"\0" * 64) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text + data


META = {"aliases": "{}"}
WHOLE = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}
ONE_BYTE = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}


def test_the_header_of_the_cases_below_is_fine_as_such(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(with_header({"__metadata__": META, "a": WHOLE}))
    assert read_locations(tmp_path / "w")["a"].size_bytes == 64


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\0" * 8, b"\xff" * 64, (1 << 40).to_bytes(8, "little") + b"{}",
        with_header(b"[]"), with_header(b"[" * 9000),
        with_header({"a": WHOLE}),
        with_header({"__metadata__": {"aliases": "[]"}, "a": WHOLE}),
        with_header({"__metadata__": {"aliases": '{"b": "none"}'}, "a": WHOLE}),
        with_header({"__metadata__": {"aliases": '{"a": "a"}'}, "a": WHOLE}),
        with_header({"__metadata__": {"aliases": '{"b": []}'}, "a": WHOLE}),
        with_header({"__metadata__": META, "a": WHOLE}, b"\0" * 63),
        with_header({"__metadata__": META, "a": WHOLE}, b"\0" * 65),
        with_header({"__metadata__": META, "a": WHOLE, "b": WHOLE}),
        with_header({"__metadata__": META, "a": {**WHOLE, "shape": [15]}}),
        with_header({"__metadata__": META, "a": {**WHOLE, "shape": [-4, -4]}}),
        with_header({"__metadata__": META, "a": {**WHOLE, "shape": [16.0]}}),
        with_header({"__metadata__": META, "a": {**WHOLE, "shape": 16}}),
        with_header({"__metadata__": META, "a": {**WHOLE, "dtype": "F31"}}),
        with_header({"__metadata__": META, "a": {**WHOLE, "dtype": []}}),
        with_header({"__metadata__": META, "a": {**WHOLE, "data_offsets": [1, 65]}}, b"\0" * 65),
        with_header({"__metadata__": META, "a": {**WHOLE, "data_offsets": [64, 128]}}, b"\0" * 128),
        with_header({"__metadata__": META, "a": ONE_BYTE, "b": {**ONE_BYTE, "shape": [63], "data_offsets": [1, 64]}}),
        with_header({"__metadata__": META, "a": None}),
    ],
    ids=range(24),
)  # fmt: skip
def test_a_bad_weight_file_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "w").write_bytes(raw)
    with pytest.raises(IntegrityError):
        read_locations(tmp_path / "w")


def test_a_plain_safetensors_file_is_not_taken(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "w")
    with pytest.raises(IntegrityError):
        read_locations(tmp_path / "w")


def test_onnx_runtime_reads_the_weights_in_place(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    locations = write_weights(
        tmp_path / "weights.safetensors", {"a": np.zeros(5, np.int8), "w": weight, "tied": weight.copy()}
    )
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=weight.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    place = {
        "location": "weights.safetensors",
        "offset": locations["tied"].offset,
        "length": locations["tied"].size_bytes,
    }
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, weight.shape) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [tensor])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "d1.ort.onnx")
    onnx.checker.check_model(str(tmp_path / "d1.ort.onnx"))
    session = ort.InferenceSession(str(tmp_path / "d1.ort.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": weight})[0], 2 * weight)
