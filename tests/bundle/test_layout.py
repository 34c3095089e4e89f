import posixpath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blockexport.bundle.layout import check_path, engine_file, parent_folders


@pytest.mark.parametrize(
    "path", ["weights.safetensors", "tokenizer/tokenizer.json", "trt/d6/engine.plan", ".hidden", "a..b"]
)
def test_ordinary_paths_are_allowed(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "", ".", "..", "../x", "a/../b", "a/..", "/etc/passwd", "//x", "a//b", "a/", "./a", "a/./b", "a\\b", "..\\x",
        "C:/x", "C:x", "\\\\host\\x", "a\0b", "a\nb", "manifest.json", "Manifest.JSON", "profiles/x.json", "profiles",
        "Profiles/x.json", "a" * 256, "\udc80",
    ],
)  # fmt: skip
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"not allowed|no manifest lists"):
        check_path(path)


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b c", "é", "x.onnx", "\\", "C:"]), min_size=1, max_size=5))
@example(["a", "..", "..", "b"])
def test_an_allowed_path_stays_inside_and_is_normalised(parts: list[str]) -> None:
    path = "/".join(parts)
    try:
        check_path(path)
    except ValueError:
        assert set(parts) & {"..", ".", "", "\\", "C:"}
    else:
        assert posixpath.normpath(posixpath.join("/bundle", path)) == f"/bundle/{path}"


def test_engines_lie_flat_beside_the_weights() -> None:
    assert engine_file("d6", "ort") == "d6.ort.onnx"


def test_parent_folders_are_all_that_the_files_need() -> None:
    assert parent_folders(["w", "a/b/c", "a/d"]) == {"a", "a/b"}
