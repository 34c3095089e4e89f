"""Where the tensors of a graph's file say that their bytes lie, read and changed without the `onnx` package.

A serving host has no `onnx`, and what must change is a few strings. The wire format of protocol buffers is fixed for
ever (https://protobuf.dev/programming-guides/encoding/), so the few messages on the way to those strings are taken
apart here and everything else is passed on byte by byte. Field numbers are those of onnx.proto.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blockexport.errors import BundleError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_EXTERNAL = 1, 2, 8, 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_MAX_VARINT_BYTES = 10


@dataclass(frozen=True, slots=True)
class ExternalTensor:
    """An initializer whose bytes lie in another file.

    Attributes:
        name: of the initializer.
        dtype: number of its type in ONNX.
        shape: sizes.
        entries: what the file says of its bytes: `location`, `offset`, `length`, and keys of the runtime's own.
    """

    name: str
    dtype: int
    shape: tuple[int, ...]
    entries: dict[str, str]


Edit = Callable[[ExternalTensor], dict[str, str]]
"""The entries that a tensor is to have instead."""


def read_external(path: Path) -> dict[str, ExternalTensor]:
    """The tensors of an ONNX file that lie elsewhere, by name.

    Raises:
        BundleError: it cannot be read or is no ONNX file.
    """
    found: dict[str, ExternalTensor] = {}

    def note(tensor: ExternalTensor) -> dict[str, str]:
        found[tensor.name] = tensor
        return tensor.entries

    edit_external(path, note)
    return found


def edit_external(path: Path, edit: Edit) -> bytes:
    """The bytes of an ONNX file with other entries for the tensors that lie elsewhere.

    Raises:
        BundleError: it cannot be read or is no ONNX file.
    """
    try:
        return _replace(path.read_bytes(), _MODEL_GRAPH, lambda graph: _edit_graph(graph, edit))
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}; restore the bundle from a copy or rebuild it"
        raise BundleError(msg) from error
    except (ValueError, KeyError, IndexError) as error:
        msg = f"{path} is not an ONNX file ({error}); restore the bundle from a copy or rebuild it"
        raise BundleError(msg) from error


def _edit_graph(graph: bytes, edit: Edit) -> bytes:
    return _replace(graph, _GRAPH_INITIALIZER, lambda tensor: _edit_tensor(tensor, edit))


def _edit_tensor(message: bytes, edit: Edit) -> bytes:
    fields = list(_fields(message))
    pairs = [dict(_texts(payload)) for number, payload, _ in fields if number == _TENSOR_EXTERNAL]
    if not pairs:
        return message
    single = {number: payload for number, payload, _ in fields}
    tensor = ExternalTensor(
        name=single[_TENSOR_NAME].decode(),
        dtype=_varint(single[_TENSOR_TYPE], 0)[0],
        shape=tuple(_varint(payload, 0)[0] for number, payload, _ in fields if number == _TENSOR_DIMS),
        entries={pair[_ENTRY_KEY]: pair[_ENTRY_VALUE] for pair in pairs},
    )
    kept = b"".join(whole for number, _, whole in fields if number != _TENSOR_EXTERNAL)
    return kept + b"".join(_entry(key, value) for key, value in edit(tensor).items())


def _entry(key: str, value: str) -> bytes:
    pair = _framed(_ENTRY_KEY, key.encode()) + _framed(_ENTRY_VALUE, value.encode())
    return _framed(_TENSOR_EXTERNAL, pair)


def _texts(message: bytes) -> Iterator[tuple[int, str]]:
    for number, payload, _ in _fields(message):
        yield number, payload.decode()


def _replace(message: bytes, number: int, change: Callable[[bytes], bytes]) -> bytes:
    """The message with every field of that number changed, which holds bytes."""
    return b"".join(
        _framed(number, change(payload)) if found == number else whole for found, payload, whole in _fields(message)
    )


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, payload, and the whole field as it stands; the payload of a number is its bytes.

    Raises:
        ValueError: the message ends within a field, or is none.
    """
    start = 0
    while start < len(message):
        tag, begin = _varint(message, start)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            end = _varint(message, begin)[1]
        elif kind == _BYTES:
            size, begin = _varint(message, begin)
            end = begin + size
        elif kind in (_FIXED64, _FIXED32):
            end = begin + (8 if kind == _FIXED64 else 4)
        else:
            msg = f"a field of kind {kind} at byte {start}"
            raise ValueError(msg)
        if end > len(message):
            msg = f"a field that ends {end - len(message)} bytes behind the end"
            raise ValueError(msg)
        yield number, message[begin:end], message[start:end]
        start = end


def _varint(message: bytes, start: int) -> tuple[int, int]:
    """A number, and where the next thing begins."""
    value = 0
    for index in range(start, min(start + _MAX_VARINT_BYTES, len(message))):
        value |= (message[index] & 127) << 7 * (index - start)
        if message[index] < 128:
            return value, index + 1
    msg = f"no number at byte {start}"
    raise ValueError(msg)


def _framed(number: int, payload: bytes) -> bytes:
    return _written(number << 3 | _BYTES) + _written(len(payload)) + payload


def _written(value: int) -> bytes:
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)
