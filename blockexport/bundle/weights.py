"""The one weight file: safetensors in which every tensor can also be mapped as ONNX external data.

Two things go beyond what safetensors asks for. Every tensor starts at a multiple of 64 bytes, counted from the start
of the file, so that runtimes can use it in place; the JSON header is padded with spaces, and since safetensors
forbids holes, a tensor of odd size is followed by a `uint8` tensor of zeros called `__pad_` and a number.
And tensors of equal type and bits are stored once, under the first of their names, also when their shapes differ (a
quantised embedding and its tied head); `aliases` in the file's metadata is a JSON object from each other name to that
one.
"""

import hashlib
import json
import math
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockexport.bundle.disk import open_regular, write_errors, written_aside
from blockexport.bundle.sealed import parse_object
from blockexport.errors import BundleError, IntegrityError

ALIGNMENT_BYTES = 64
PAD_PREFIX = "__pad_"
_METADATA = "__metadata__"
# What the safetensors library refuses to go above.
_MAX_HEADER_BYTES = 100_000_000
# By name, so that bfloat16 and float8 work without importing ml_dtypes.
_CODES = {
    "bool": ("BOOL", 1),
    "uint8": ("U8", 1),
    "int8": ("I8", 1),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "uint16": ("U16", 2),
    "int16": ("I16", 2),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "uint32": ("U32", 4),
    "int32": ("I32", 4),
    "float32": ("F32", 4),
    "uint64": ("U64", 8),
    "int64": ("I64", 8),
    "float64": ("F64", 8),
}
_ITEM_BYTES = dict(_CODES.values())


@dataclass(frozen=True, slots=True)
class TensorLocation:
    """Where a tensor's bytes lie: `offset` counts from the start of the file, as ONNX external data does."""

    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Stored:
    name: str
    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


def write_weights(path: Path, tensors: Mapping[str, NDArray[Any]]) -> dict[str, TensorLocation]:
    """Write a weight file in one step: aside, flushed to disk, renamed.

    Each tensor is asked for twice, and only one is held at a time, so `tensors` may load them as they are asked for.
    Equal tensors under equal names give equal bytes, in whatever order the mapping has them.

    Returns:
        For every name given, where its bytes are; names of equal tensors share a place.

    Raises:
        BundleError: a name or type cannot be stored, a tensor changed meanwhile, or the disk refuses.
    """
    stored, aliases = _plan(tensors)
    header = _header(stored, aliases)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with write_errors(path), written_aside(path, aside) as file:
        file.write(header)
        for entry in stored:
            file.write(_content(entry, tensors).data)
        file.flush()
        return read_locations(aside)


def _bytes_of(tensor: NDArray[Any]) -> NDArray[np.uint8]:
    little = np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8)


def _content(entry: _Stored, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    if entry.name.startswith(PAD_PREFIX):
        return np.zeros(entry.end - entry.begin, np.uint8)
    content = _bytes_of(tensors[entry.name])
    if content.size != entry.end - entry.begin:
        msg = f"tensor {entry.name!r} changed its size while it was written; give tensors that stay as they are"
        raise BundleError(msg)
    return content


def _plan(tensors: Mapping[str, NDArray[Any]]) -> tuple[list[_Stored], dict[str, str]]:
    """Decide what is stored where; offsets count from the end of the header."""
    stored: list[_Stored] = []
    aliases: dict[str, str] = {}
    first: dict[tuple[str, int, bytes], str] = {}
    end = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        code = _code(name, tensor)
        content = _bytes_of(tensor)
        key = (code, content.size, hashlib.sha256(content.data).digest())
        if key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        if end % ALIGNMENT_BYTES:
            gap = -end % ALIGNMENT_BYTES
            stored.append(_Stored(f"{PAD_PREFIX}{len(stored)}", "U8", (gap,), end, end + gap))
            end += gap
        stored.append(_Stored(name, code, tensor.shape, end, end + content.size))
        end += content.size
    return stored, aliases


def _code(name: str, tensor: NDArray[Any]) -> str:
    if name == _METADATA or name.startswith(PAD_PREFIX):
        msg = f"tensor name {name!r} is reserved in weight files; rename it"
        raise BundleError(msg)
    if tensor.dtype.name not in _CODES:
        msg = f"tensor {name!r} is of type {tensor.dtype}; weight files hold {', '.join(_CODES)}; convert it"
        raise BundleError(msg)
    return _CODES[tensor.dtype.name][0]


def _header(stored: list[_Stored], aliases: dict[str, str]) -> bytes:
    value: dict[str, Any] = {_METADATA: {"aliases": json.dumps(aliases, separators=(",", ":"))}}
    for entry in stored:
        value[entry.name] = {
            "dtype": entry.code,
            "shape": list(entry.shape),
            "data_offsets": [entry.begin, entry.end],
        }
    text = json.dumps(value, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT_BYTES)
    if len(text) > _MAX_HEADER_BYTES:
        msg = f"{len(stored)} tensors need a header of {len(text)} bytes, above {_MAX_HEADER_BYTES}; store fewer"
        raise BundleError(msg)
    return len(text).to_bytes(8, "little") + text


def read_locations(path: Path) -> dict[str, TensorLocation]:
    """Where every tensor of a weight file lies, from its header alone.

    Raises:
        IntegrityError: it is no file that `write_weights` wrote: a tensor is not aligned, overlaps another, leaves a
            hole, reaches behind the end, or has a size that is not that of its type and shape.
    """
    try:
        return _read_locations(path)
    except OSError as error:
        msg = f"cannot read the weights {path}: {error.strerror or error}; rebuild the bundle"
        raise IntegrityError(msg) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        msg = f"{path} is not a weight file of blockexport ({error}); rebuild the bundle"
        raise IntegrityError(msg) from error


def _read_locations(path: Path) -> dict[str, TensorLocation]:
    with open_regular(path) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        header_bytes = int.from_bytes(file.read(8), "little")
        if not 0 < header_bytes <= min(_MAX_HEADER_BYTES, file_bytes - 8):
            msg = f"a header of {header_bytes} bytes in a file of {file_bytes}"
            raise ValueError(msg)
        header = parse_object(file.read(header_bytes), f"the header of {path}")
    aliases = parse_object(header.pop(_METADATA)["aliases"].encode(), f"the list of aliases in {path}")
    start = 8 + header_bytes
    locations: dict[str, TensorLocation] = {}
    end = 0
    for name, value in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, size_bytes = end, _size(name, value, end)
        end += size_bytes
        if not name.startswith(PAD_PREFIX):
            if (start + begin) % ALIGNMENT_BYTES:
                msg = f"tensor {name!r} starts at byte {start + begin}, no multiple of {ALIGNMENT_BYTES}"
                raise ValueError(msg)
            locations[name] = TensorLocation(start + begin, size_bytes)
    if start + end != file_bytes:
        msg = f"tensors up to byte {start + end} in a file of {file_bytes}"
        raise ValueError(msg)
    if not aliases.keys().isdisjoint(locations):
        msg = "a name stands both for a tensor and for an alias"
        raise ValueError(msg)
    return locations | {name: locations[target] for name, target in aliases.items()}


def _size(name: str, value: dict[str, Any], begin: int) -> int:
    """Bytes of one tensor, which must start where the one before it ended."""
    shape = value["shape"]
    size_bytes: int = math.prod(shape) * _ITEM_BYTES[value["dtype"]]
    whole = all(type(size) is int and size >= 0 for size in shape)
    if not whole or value["data_offsets"] != [begin, begin + size_bytes]:
        wanted = [begin, begin + size_bytes]
        msg = f"tensor {name!r} of shape {shape} lies at {value['data_offsets']}, expected at {wanted}"
        raise ValueError(msg)
    return size_bytes
