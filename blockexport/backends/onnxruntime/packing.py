"""Packs the weights of several graphs once, in the form that this host's kernels want, for all of them to map.

ONNX Runtime packs the weights of matrix products for each session anew, into memory of its own. What it packed can be
saved with the graph that it optimised; another graph whose initializer names the saved bytes (`prepacked_0` among its
external data) maps them. The runtime still packs each weight when it opens a graph, compares a hash with what is
named, and then keeps the mapping and drops its own copy, so a packing of another kind costs memory, not correctness.
That the mapped bytes are what it has packed only newer versions check (1.32 does): that is for the caller to prove.

The runtime looks for both forms of a weight in one file, and for all files in the graph's own folder. Hence the folder
that is filled here: a file of packed weights, which has them at the same place as the bundle's file, so that it is
sparse, and the packed forms behind; a hard link to the bundle's file for the weights that are not packed; and graphs
that differ from the bundle's in their external data only.
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blockexport.backends.onnxruntime.external_data import ExternalTensor, edit_external, read_external
from blockexport.backends.onnxruntime.session import open_session
from blockexport.errors import BundleError

PACKED_FILE = "packed.bin"
# Of one page no two packed weights have a part: kernels may write into theirs, and then only these pages are copied.
_ALIGNMENT_BYTES = 4096
_CHUNK_BYTES = 1 << 24
_PREFIX = "prepacked_"


@dataclass(frozen=True, slots=True)
class _Blob:
    """A range of a file."""

    file: Path
    offset: int
    length: int


_Packed = dict[str, tuple[_Blob, ...]]
"""The blobs of one weight by what the runtime calls a way of packing it."""


def pack_graphs(graphs: Mapping[str, Path], folder: Path, *, threads: int = 0) -> None:
    """Fill an empty folder with graphs of the same file names that share packed weights.

    Args:
        graphs: ONNX files of one folder by the name of the level, the deepest first.
        folder: where to write.
        threads: threads within an operator.

    Raises:
        BundleError: the runtime cannot open or pack a graph.
        OSError: there is no room, or the disk refuses.
    """
    tensors = {name: read_external(path) for name, path in graphs.items()}
    packed = _pack(graphs, tensors, folder / "scratch", threads)
    if not packed:
        msg = f"ONNX Runtime packs no weight of {', '.join(sorted(graphs))} on this host; use the bundle's own graphs"
        raise BundleError(msg)
    every = {name: tensor for level in tensors.values() for name, tensor in level.items()}
    sources = {path.parent / tensor.entries["location"] for path in graphs.values() for tensor in every.values()}
    if len(sources) != 1:
        msg = f"the graphs {', '.join(sorted(graphs))} do not share one file of weights; rebuild the bundle"
        raise BundleError(msg)
    (weights,) = sources
    linked = _link(weights, folder / weights.name)
    moved = {name: tensor for name, tensor in every.items() if name in packed or not linked}
    entries = _write_weights(folder / PACKED_FILE, weights, moved, packed)
    for path in graphs.values():
        edited = edit_external(path, lambda tensor: tensor.entries | entries.get(tensor.name, {}))
        (folder / path.name).write_bytes(edited)
    shutil.rmtree(folder / "scratch")


def _pack(
    graphs: Mapping[str, Path], tensors: Mapping[str, dict[str, ExternalTensor]], scratch: Path, threads: int
) -> dict[str, _Packed]:
    """What the runtime packs each weight into, by the name of the weight."""
    scratch.mkdir()
    known: set[str] = set()
    packed: dict[str, _Packed] = {}
    for level, path in graphs.items():
        if tensors[level].keys() <= known:
            # The usual case: a shallower level has weights of the deepest only.
            continue
        known |= tensors[level].keys()
        optimised = scratch / path.name
        open_session(path, threads=threads, save_packed=optimised)
        for name, tensor in read_external(optimised).items():
            original = tensors[level].get(name)
            if original is not None and (original.dtype, original.shape) == (tensor.dtype, tensor.shape):
                ways = _ways(tensor, scratch)
                if ways:
                    packed.setdefault(name, {}).update(ways)
    return packed


def _ways(tensor: ExternalTensor, folder: Path) -> _Packed:
    """Read the runtime's notes: `way|offset;length;checksum`, with more after `|` for a weight in several blobs."""
    file = folder / tensor.entries["location"]
    size = file.stat().st_size
    ways = {}
    for key, value in tensor.entries.items():
        if key.startswith(_PREFIX):
            way, *places = value.split("|")
            numbers = [place.split(";") for place in places]
            blobs = tuple(_Blob(file, int(offset), int(length)) for offset, length, _ in numbers)
            if any(blob.offset + blob.length > size for blob in blobs):
                msg = f"ONNX Runtime left {file.name} unfinished at {size} bytes; make room on its disk"
                raise BundleError(msg)
            ways[way] = blobs
    return ways


def _link(source: Path, target: Path) -> bool:
    """Give a file a second name, which costs nothing; not possible across file systems, nor for files of others."""
    with suppress(OSError):
        target.hardlink_to(source)
        return True
    return False


def _write_weights(
    path: Path, weights: Path, moved: Mapping[str, ExternalTensor], packed: Mapping[str, _Packed]
) -> dict[str, dict[str, str]]:
    """Write the file of packed weights.

    Args:
        path: the file.
        weights: the bundle's.
        moved: what else of the bundle's file must be in it, at the same place.
        packed: what each weight is packed into.

    Returns:
        Entries to be set, by the name of the weight.
    """
    entries = {}
    with path.open("xb") as file:
        for blob in {_original(weights, tensor) for tensor in moved.values()}:
            _copy(blob, file.fileno(), blob.offset)
        end = weights.stat().st_size
        for name in moved:
            entries[name] = {"location": path.name}
            for number, (way, blobs) in enumerate(packed.get(name, {}).items()):
                places = []
                for blob in blobs:
                    end += -end % _ALIGNMENT_BYTES
                    _copy(blob, file.fileno(), end)
                    places.append(f"{end};{blob.length};0")
                    end += blob.length
                entries[name][f"{_PREFIX}{number}"] = "|".join((way, *places))
        # The last mapping ends where the file does or before.
        file.truncate(end)
    return entries


def _original(weights: Path, tensor: ExternalTensor) -> _Blob:
    return _Blob(weights, int(tensor.entries["offset"]), int(tensor.entries["length"]))


def _copy(blob: _Blob, target: int, at: int) -> None:
    """Copy a range to a place in another file, which may lie behind its end."""
    with blob.file.open("rb") as source:
        for start in range(0, blob.length, _CHUNK_BYTES):
            chunk = os.pread(source.fileno(), min(_CHUNK_BYTES, blob.length - start), blob.offset + start)
            if os.pwrite(target, chunk, at + start) < min(_CHUNK_BYTES, blob.length - start):
                msg = f"could not copy {blob.length} bytes of {blob.file.name} in full; make room on the disk"
                raise BundleError(msg)
