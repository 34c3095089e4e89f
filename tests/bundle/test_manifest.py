import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from blockexport.bundle.layout import VISION_PREFIX, engine_file
from blockexport.bundle.manifest import (
    SEAL_FIELD,
    EngineEntry,
    FileEntry,
    LevelEntry,
    Manifest,
    ManifestDraft,
    ParityRecord,
    VisionEntry,
    WeightsEntry,
)
from blockexport.bundle.sealed import seal
from blockexport.core.masks import DepthLadder
from blockexport.core.model import ModelSpec, VisionSpec
from blockexport.core.quality import Quality
from blockexport.core.signature import Signature
from blockexport.errors import BundleError, ConfigError, IntegrityError, SchemaVersionError

SHA = "ab" * 32
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
SIGNATURE = Signature(inputs=(), outputs=())


def complete(draft: ManifestDraft, **overrides: Any) -> Manifest:
    paths = ["weights.safetensors", *(engine.path for level in draft.levels for engine in level.engines)]
    fields = {name: getattr(draft, name) for name in ManifestDraft.model_fields} | {
        "weights": WeightsEntry(path="weights.safetensors", size_bytes=7, num_tensors=1),
        "files": tuple(FileEntry(path=path, size_bytes=7, sha256=SHA) for path in paths),
    }
    return Manifest(**(fields | overrides))


@st.composite
def levels(draw: st.DrawFn, num_blocks: int) -> tuple[LevelEntry, ...]:
    order = draw(st.permutations(range(num_blocks)))
    depths = draw(st.sets(st.integers(1, num_blocks), min_size=1))
    result = []
    for depth in sorted(depths, reverse=True):
        metric = {
            "value": draw(st.floats(allow_nan=False)),
            "stderr": 0.5,
            "n": 3,
            "higher_is_better": draw(st.booleans()),
        }
        result.append(
            LevelEntry(
                name=f"d{depth}",
                depth=depth,
                kept=tuple(sorted(order[:depth])),
                skipped=tuple(sorted(order[depth:])),
                engines=(
                    EngineEntry(backend="onnxruntime", target="ort", path=f"d{depth}.ort.onnx", signature=SIGNATURE),
                ),
                parity=(
                    ParityRecord(
                        check=draw(TEXT),
                        max_abs_err=draw(st.floats(0)),
                        tolerance=1e-5,
                        tokens_equal=draw(st.none() | st.booleans()),
                        passed=True,
                    ),
                ),
                quality=dict.fromkeys(draw(st.lists(TEXT, unique=True, max_size=3)), metric),
            )
        )
    return tuple(result)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    num_blocks = draw(st.integers(1, 6))
    model = ModelSpec(name=draw(TEXT), architecture="A", kind="encoder", num_blocks=num_blocks, digest=SHA)
    draft = ManifestDraft(
        model=model,
        num_blocks=num_blocks,
        strategy=draw(TEXT),
        notes=tuple(draw(st.lists(TEXT, max_size=2))),
        levels=draw(levels(num_blocks)),
        tools=draw(st.dictionaries(TEXT, TEXT, max_size=3)),
        recipe=draw(st.dictionaries(TEXT, JSON, max_size=3)),
        seeds=draw(st.dictionaries(TEXT, st.integers(), max_size=3)),
        data=draw(st.dictionaries(TEXT, JSON, max_size=3)),
    )
    return complete(draft)


@given(manifests())
@settings(max_examples=60, deadline=None)
def test_round_trip(manifest: Manifest) -> None:
    raw = manifest.to_bytes()
    again = Manifest.from_bytes(raw)
    assert again == manifest
    assert again.to_bytes() == raw
    assert again.ladder == manifest.ladder
    assert [list(level.quality) for level in again.levels] == [list(level.quality) for level in manifest.levels]


def test_equal_contents_give_equal_bytes_in_whatever_order(make_draft: Any) -> None:
    recipe = {"b": {"y": 1, "x": (2, 3)}, "a": 0}
    turned = {"a": 0, "b": {"x": [2, 3], "y": 1}}
    tools = {"numpy": "2", "onnx": "1"}
    first = complete(make_draft(recipe=recipe, tools=tools))
    second = complete(make_draft(recipe=turned, tools=dict(reversed(tools.items()))))
    assert first.to_bytes() == second.to_bytes()
    assert first.digest == second.digest == json.loads(first.to_bytes())[SEAL_FIELD]


def test_quality_keeps_its_order_and_its_first_metric(make_draft: Any) -> None:
    manifest = Manifest.from_bytes(complete(make_draft()).to_bytes())
    assert Quality.from_json(manifest.level("d2").quality).primary[0] == "exact_match"


def test_ladder(make_draft: Any) -> None:
    manifest = complete(make_draft())
    assert isinstance(manifest.ladder, DepthLadder)
    assert [(level.name, level.kept) for level in manifest.ladder.levels] == [("d3", (0, 1, 2)), ("d2", (0, 2))]
    assert manifest.ladder.strategy == "top_k"
    with pytest.raises(ConfigError, match="d3, d2"):
        manifest.level("d9")


def _entry(level: LevelEntry, **changes: Any) -> LevelEntry:
    return LevelEntry(**({name: getattr(level, name) for name in LevelEntry.model_fields} | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 1},
        {"skipped": ()},
        {"skipped": (0,)},
        {"kept": (2, 0)},
        {"kept": (0, 5)},
        {"kept": (), "depth": 0},
        {"name": "d3"},
    ],
)
def test_a_level_that_contradicts_itself_is_refused(make_draft: Any, changes: dict[str, Any]) -> None:
    deep, shallow = make_draft().levels
    with pytest.raises(ValidationError):
        make_draft(levels=(deep, _entry(shallow, **changes)))


def test_levels_must_be_nested_and_deepest_first(make_draft: Any) -> None:
    deep, shallow = make_draft().levels
    other = _entry(shallow, name="x", depth=1, kept=(1,), skipped=(0, 2))
    with pytest.raises(ValidationError, match="nested"):
        make_draft(levels=(shallow, deep))
    with pytest.raises(ValidationError, match="nested"):
        make_draft(levels=(deep, shallow, other))
    with pytest.raises(ValidationError):
        make_draft(levels=())


def test_the_block_count_must_be_the_models(make_draft: Any) -> None:
    with pytest.raises(ValidationError, match="the model has 3"):
        make_draft(num_blocks=4)


@pytest.mark.parametrize("name", ["", "../d2", "a/b", ".d2", "d 2", "d2\n"])
def test_a_level_name_must_be_a_file_name(make_draft: Any, name: str) -> None:
    with pytest.raises(ValidationError):
        _entry(make_draft().levels[0], name=name)


def test_two_engines_of_one_kind_are_refused(make_draft: Any) -> None:
    level = make_draft().levels[0]
    with pytest.raises(ValidationError, match="two engines"):
        _entry(level, engines=level.engines * 2)


def test_a_graph_must_lie_beside_the_weights() -> None:
    with pytest.raises(ValidationError, match="beside the weights"):
        EngineEntry(backend="onnxruntime", target="ort", path="d2/model.onnx", signature=SIGNATURE)
    EngineEntry(backend="tensorrt", target="trt", path="trt/d2.plan", signature=SIGNATURE)


@pytest.mark.parametrize("value", [math.nan, {1, 2}, object(), {1: 2}, [math.nan]])
def test_what_json_cannot_say_is_refused(make_draft: Any, value: Any) -> None:
    with pytest.raises(ValidationError):
        make_draft(recipe={"key": value})


def test_a_nan_parity_is_refused() -> None:
    with pytest.raises(ValidationError):
        ParityRecord(check="prefill", max_abs_err=math.nan, tolerance=1, tokens_equal=None, passed=True)


@pytest.mark.parametrize(
    "quality",
    [{"a": 1}, {"a": {"value": 1}}, {"a": {"value": math.nan, "stderr": 0, "n": 1, "higher_is_better": True}}],
)
def test_quality_of_another_shape_is_refused(make_draft: Any, quality: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        _entry(make_draft().levels[0], quality=quality)


def _files(manifest: Manifest, *more: str, drop: str = "") -> tuple[FileEntry, ...]:
    extra = tuple(FileEntry(path=path, size_bytes=1, sha256=SHA) for path in more)
    return tuple(entry for entry in manifest.files if entry.path != drop) + extra


@pytest.mark.parametrize("more", [("a", "a"), ("a", "A"), ("e\u0301", "\u00e9"), ("D3.ort.onnx",)])
def test_files_that_are_one_on_some_file_system_are_refused(make_draft: Any, more: tuple[str, ...]) -> None:
    draft = make_draft()
    with pytest.raises(ValidationError, match="repeat"):
        complete(draft, files=_files(complete(draft), *more))


@pytest.mark.parametrize("drop", ["d2.ort.onnx", "weights.safetensors"])
def test_engines_and_weights_must_be_among_the_files(make_draft: Any, drop: str) -> None:
    draft = make_draft()
    with pytest.raises(ValidationError, match=drop):
        complete(draft, files=_files(complete(draft), drop=drop))


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "manifest.json", "profiles/a.json", "a\\b", "a//b"])
def test_a_sealed_manifest_with_a_bad_path_is_refused(make_draft: Any, path: str) -> None:
    value = json.loads(complete(make_draft()).to_bytes())
    del value[SEAL_FIELD]
    value["files"].append({"path": path, "size_bytes": 1, "sha256": SHA})
    with pytest.raises(IntegrityError, match=r"not allowed|no manifest lists"):
        Manifest.from_bytes(seal(value, SEAL_FIELD))


def _resealed(manifest: Manifest, **changes: Any) -> bytes:
    value = json.loads(manifest.to_bytes()) | changes
    value.pop(SEAL_FIELD)
    return seal(value, SEAL_FIELD)


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": 1},
        {"num_blocks": "3"},
        {"num_blocks": 3.0},
        {"levels": {}},
        {"model": None},
        {"schema_version": "1"},
        {"schema_version": True},
    ],
)
def test_a_sealed_manifest_that_we_would_not_write_is_refused(make_draft: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError):
        Manifest.from_bytes(_resealed(complete(make_draft()), **changes))


def test_fields_in_another_order_are_refused(make_draft: Any) -> None:
    value = json.loads(complete(make_draft()).to_bytes())
    del value[SEAL_FIELD]
    with pytest.raises(IntegrityError, match="not in the form"):
        Manifest.from_bytes(seal(dict(reversed(value.items())), SEAL_FIELD))


def with_vision(make_draft: Any, **overrides: Any) -> ManifestDraft:
    side = VisionSpec(num_blocks=3, block_path="tower.blocks", image_shape=(3, 8, 8), num_pooled=4, hidden_size=6)
    draft = make_draft()
    levels = tuple(
        level.model_copy(
            update={
                "engines": tuple(
                    engine.model_copy(update={"path": engine_file(f"{VISION_PREFIX}{level.name}", engine.target)})
                    for engine in level.engines
                )
            }
        )
        for level in draft.levels
    )
    fields = {
        "schema_version": 2,
        "model": draft.model.model_copy(update={"vision": side}),
        "vision": VisionEntry(num_blocks=3, levels=levels),
    }
    made: ManifestDraft = make_draft(**(fields | overrides))
    return made


def test_a_vision_side_has_levels_of_its_own_and_another_version(make_draft: Any) -> None:
    draft = with_vision(make_draft)
    paths = ["weights.safetensors", *(engine.path for v in draft.all_levels.values() for engine in v.engines)]
    assert len(set(paths)) == 5
    manifest = complete(draft, files=tuple(FileEntry(path=path, size_bytes=7, sha256=SHA) for path in paths))
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert list(manifest.all_levels) == ["d3", "d2", "vision:d3", "vision:d2"]
    assert manifest.level("vision:d2").kept == (0, 2)
    with pytest.raises(ValidationError, match="is not among the files"):
        complete(draft)
    assert b"vision" not in complete(make_draft()).to_bytes()


@pytest.mark.parametrize(
    "overrides",
    [
        {"schema_version": 1},
        {"vision": None},
        {"vision": None, "schema_version": 1},
    ],
)
def test_a_vision_side_is_said_everywhere_or_nowhere(make_draft: Any, overrides: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        with_vision(make_draft, **overrides)
    with pytest.raises(ValidationError, match="must be listed"):
        with_vision(make_draft, model=make_draft().model)


@pytest.mark.parametrize("version", [0, 3, 999])
def test_another_schema_version_says_what_is_readable(make_draft: Any, version: int) -> None:
    raw = _resealed(complete(make_draft()), schema_version=version)
    with pytest.raises(SchemaVersionError, match=f"is {version}, but this blockexport reads 1, 2; rebuild"):
        Manifest.from_bytes(raw)
    with pytest.raises(ValidationError):
        make_draft(schema_version=version)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"{",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"schema_version": 1e999}',
        b"\xef\xbb\xbf{}",
        b"9" * 5000,
    ],
    ids=range(11),
)
def test_what_is_no_manifest_is_refused(raw: bytes) -> None:
    with pytest.raises(IntegrityError):
        Manifest.from_bytes(raw)


def test_other_spellings_of_the_same_json_are_refused(make_draft: Any) -> None:
    raw = complete(make_draft()).to_bytes()
    value = json.loads(raw)
    first = next(iter(value))
    doubled = raw.replace(b"{", b'{\n  "%s": 1,' % first.encode(), 1)
    for other in (raw + b"\n", raw.rstrip(), json.dumps(value).encode(), json.dumps(value, indent=2).encode(), doubled):
        assert json.loads(other) == value
        with pytest.raises(IntegrityError):
            Manifest.from_bytes(other)


@pytest.mark.slow
def test_every_flipped_byte_is_noticed(make_draft: Any) -> None:
    raw = complete(make_draft()).to_bytes()
    for position in range(len(raw)):
        for flip in (0x01, 0x20, 0x80):
            damaged = bytearray(raw)
            damaged[position] ^= flip
            with pytest.raises(BundleError):
                Manifest.from_bytes(bytes(damaged))


def test_every_truncation_is_noticed(make_draft: Any) -> None:
    raw = complete(make_draft()).to_bytes()
    for size in range(0, len(raw), 7):
        with pytest.raises(BundleError):
            Manifest.from_bytes(raw[:size])


@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_a_clean_error(raw: bytes) -> None:
    with pytest.raises(BundleError):
        Manifest.from_bytes(raw)


def test_text_that_cannot_be_encoded_is_refused(make_draft: Any) -> None:
    with pytest.raises(ConfigError):
        complete(make_draft(strategy="\ud800")).to_bytes()


def test_too_deep_a_recipe_is_refused(make_draft: Any) -> None:
    deep: Any = 0
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ValidationError, match="too deeply"):
        make_draft(recipe={"deep": deep})
