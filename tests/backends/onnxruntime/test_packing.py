import os
from pathlib import Path

import pytest

from blockexport.backends.onnxruntime.external_data import edit_external, read_external
from blockexport.backends.onnxruntime.packing import PACKED_FILE, pack_graphs
from blockexport.backends.onnxruntime.probe import gives_same_outputs
from blockexport.backends.onnxruntime.session import open_session
from blockexport.bundle.layout import WEIGHTS_FILE
from blockexport.bundle.weights import read_locations, write_weights
from blockexport.errors import BundleError
from blockexport.export.graph_file import to_bytes
from blockexport.testing.tiny_bundle import TABLE, tiny_graph, tiny_weights

NAMES = (TABLE, "w0", "w1", "w2")
LEVELS = {"deep": (0, 1, 2), "shallow": (0, 2)}


@pytest.fixture
def graphs(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "bundle"
    folder.mkdir()
    weights = tiny_weights()
    locations = write_weights(folder / WEIGHTS_FILE, weights)
    paths = {name: folder / f"{name}.onnx" for name in LEVELS}
    for name, path in paths.items():
        path.write_bytes(to_bytes(tiny_graph(weights, LEVELS[name]), locations))
    return paths


@pytest.fixture
def packed(graphs: dict[str, Path], tmp_path: Path) -> Path:
    folder = tmp_path / "packed"
    folder.mkdir()
    pack_graphs(graphs, folder)
    return folder


def test_packed_graphs_give_the_same_bits(graphs: dict[str, Path], packed: Path) -> None:
    for graph in graphs.values():
        assert gives_same_outputs(graph, packed / graph.name)


def test_the_probe_tells_levels_apart(graphs: dict[str, Path]) -> None:
    assert not gives_same_outputs(graphs["deep"], graphs["shallow"])


def test_levels_name_the_same_packed_bytes_and_only_of_weights_that_are_packed(
    graphs: dict[str, Path], packed: Path
) -> None:
    deep, shallow = (read_external(packed / f"{name}.onnx") for name in LEVELS)
    assert {name for name, tensor in deep.items() if "prepacked_0" in tensor.entries} == {"w0", "w1", "w2"}
    assert set(shallow) == {"table", "w0", "w2"}
    assert all(shallow[name].entries == deep[name].entries for name in shallow)
    assert deep["table"].entries["location"] == WEIGHTS_FILE


def test_the_runtime_maps_the_packed_bytes(graphs: dict[str, Path], packed: Path) -> None:
    """Other bytes in place of the packed ones give other answers or an error: they are what is multiplied with."""
    before = (packed / PACKED_FILE).stat().st_size
    places = [
        place.split(";")
        for tensor in read_external(packed / "deep.onnx").values()
        for place in tensor.entries.get("prepacked_0", "|").split("|")[1:]
        if place
    ]
    with (packed / PACKED_FILE).open("r+b") as file:
        for offset, length, _ in places:
            assert int(offset) % 4096 == 0
            os.pwrite(file.fileno(), bytes(int(length)), int(offset))
    assert len(places) == 3
    assert (packed / PACKED_FILE).stat().st_size == before
    try:
        same = gives_same_outputs(graphs["deep"], packed / "deep.onnx")
    except BundleError:
        # Newer versions compare the bytes themselves.
        same = False
    assert not same


def test_what_is_not_packed_is_not_copied(graphs: dict[str, Path], packed: Path) -> None:
    weights = graphs["deep"].parent / WEIGHTS_FILE
    assert (packed / WEIGHTS_FILE).samefile(weights)
    where = read_locations(weights)
    content = (packed / PACKED_FILE).read_bytes()
    for name in NAMES:
        place = slice(where[name].offset, where[name].offset + where[name].size_bytes)
        assert (content[place] == weights.read_bytes()[place]) is (name != "table"), name


def test_a_file_system_without_links_gets_copies(
    graphs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    folder = tmp_path / "copied"
    folder.mkdir()
    pack_graphs(graphs, folder)
    assert sorted(os.listdir(folder)) == ["deep.onnx", PACKED_FILE, "shallow.onnx"]
    for graph in graphs.values():
        assert gives_same_outputs(graph, folder / graph.name)


def test_a_weight_of_another_shape_is_left_as_it_is(graphs: dict[str, Path], packed: Path, tmp_path: Path) -> None:
    """A level whose tensors are not the deepest one's is packed by itself: here the two have nothing in common."""
    other = tmp_path / "bundle" / "other.onnx"
    names = {"w0": "v0", "w2": "v2", "table": "table"}
    locations = {names.get(name, name): place for name, place in read_locations(other.parent / WEIGHTS_FILE).items()}
    assert set(locations) == {"table", "v0", "w1", "v2"}
    content = graphs["shallow"].read_bytes()
    other.write_bytes(content.replace(b"\x02w0", b"\x02v0").replace(b"\x02w2", b"\x02v2"))
    folder = tmp_path / "mixed"
    folder.mkdir()
    pack_graphs(graphs | {"other": other}, folder)
    entries = {name: tensor.entries for name, tensor in read_external(folder / "other.onnx").items()}
    assert "prepacked_0" in entries["v0"]
    assert "prepacked_0" in entries["v2"]
    assert gives_same_outputs(graphs["shallow"], folder / "other.onnx")


def test_a_packing_of_another_kind_is_not_used(graphs: dict[str, Path], packed: Path) -> None:
    """The runtime looks packed bytes up by a hash; what an older version called otherwise costs memory only."""
    edited = edit_external(
        packed / "deep.onnx",
        lambda tensor: {
            key: value.replace("MatMul+", "MatMul+1") if key.startswith("prepacked") else value
            for key, value in tensor.entries.items()
        },
    )
    assert edited != (packed / "deep.onnx").read_bytes()
    (packed / "deep.onnx").write_bytes(edited)
    assert gives_same_outputs(graphs["deep"], packed / "deep.onnx")


def test_nothing_to_pack_is_said(graphs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockexport.backends.onnxruntime.packing._PREFIX", "no such prefix")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="packs no weight"):
        pack_graphs(graphs, tmp_path / "empty")


def test_a_graph_that_cannot_be_opened_is_an_error(graphs: dict[str, Path], tmp_path: Path) -> None:
    graphs["deep"].write_bytes(graphs["deep"].read_bytes()[:-30])
    (tmp_path / "broken").mkdir()
    with pytest.raises(BundleError, match=r"deep\.onnx"):
        pack_graphs(graphs, tmp_path / "broken")


def test_saving_writes_two_files(graphs: dict[str, Path], tmp_path: Path) -> None:
    open_session(graphs["deep"], save_packed=tmp_path / "saved.onnx")
    assert {"saved.onnx", "saved.bin"} <= set(os.listdir(tmp_path))


def test_a_place_where_nothing_can_be_saved_is_named(graphs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"make room in .*missing"):
        open_session(graphs["deep"], save_packed=tmp_path / "missing" / "saved.onnx")
