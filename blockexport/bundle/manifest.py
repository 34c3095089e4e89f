"""What a bundle says about itself: model, levels, engines, gates, and every file with its size and digest."""

from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from blockexport.bundle.layout import VISION_PREFIX, check_path, folded
from blockexport.bundle.sealed import parse_object, seal, unseal
from blockexport.core.masks import LEVEL_NAME_PATTERN, DepthLadder, DepthLevel, DepthMask
from blockexport.core.model import ModelSpec
from blockexport.core.precision import FP32, Precision
from blockexport.core.quality import Quality
from blockexport.core.signature import Signature
from blockexport.errors import ConfigError, IntegrityError, SchemaVersionError

SCHEMA_VERSION = 1
VISION_SCHEMA_VERSION = 2
"""Of bundles with a vision side, which versions that read only 1 cannot serve."""
READABLE_VERSIONS = (1, 2)
SEAL_FIELD = "manifest_sha256"
_SHOWN_COMPLAINTS = 3


def _plain_object(value: dict[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = _plain(value)
    except RecursionError:
        msg = "nested too deeply for JSON"
        raise ValueError(msg) from None
    return plain


def _plain(value: Any) -> Any:
    """The value as JSON reads it back: lists for tuples, keys sorted, so that equal contents give equal bytes."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            msg = f"keys {list(value)[:5]} are not all text; JSON objects have text keys"
            raise ValueError(msg)
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and value == value:  # noqa: PLR0124  NaN is the one float that JSON cannot say
        return float(value)
    msg = f"{value!r} is not JSON; use text, numbers, lists and objects, and no NaN"
    raise ValueError(msg)


FilePath = Annotated[str, AfterValidator(check_path)]
PlainDict = Annotated[dict[str, Any], AfterValidator(_plain_object)]
# Level names become file names.
Name = Annotated[str, Field(pattern=LEVEL_NAME_PATTERN)]


class _Entry(BaseModel):
    # Without, pydantic turns infinities into null.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class FileEntry(_Entry):
    """One file of the bundle; `path` is relative to it, `sha256` hexadecimal in lower case."""

    path: FilePath
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class EngineEntry(_Entry):
    """One executable form of one level.

    Attributes:
        backend: who runs it, e.g. `onnxruntime`.
        target: what it was lowered to, e.g. `ort`.
        path: its file in the bundle; a graph that reads the shared weights lies flat beside them.
        signature: inputs and outputs.
        requires: for machine code, what a host must have: the version of what compiled it, and the processor or GPU.
    """

    backend: Name
    target: Name
    path: FilePath
    signature: Signature
    requires: Annotated[dict[str, str], AfterValidator(_plain)] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_absent(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Graphs run anywhere, and their entries stay as they always were."""
        fields: dict[str, Any] = serialise(self)
        return fields if self.requires else {name: value for name, value in fields.items() if name != "requires"}

    @model_validator(mode="after")
    def _flat(self) -> Self:
        if self.path.endswith(".onnx") and "/" in self.path:
            msg = f"graph {self.path!r} lies in a folder; it must lie beside the weights, ONNX Runtime refuses '..'"
            raise ValueError(msg)
        return self


class ParityRecord(_Entry):
    """One comparison of an engine with the masked eager reference.

    Attributes:
        check: what was compared, e.g. `prefill`.
        max_abs_err: largest absolute difference of an output, in the output's own unit.
        tolerance: what it may be.
        tokens_equal: whether greedy tokens agree; None where there are no tokens.
        passed: the verdict.
        operators: whose operators ran, `stock` or `native`.
    """

    check: str
    max_abs_err: float = Field(ge=0)
    tolerance: float = Field(ge=0)
    tokens_equal: bool | None
    passed: bool
    operators: str = "stock"


class LevelEntry(_Entry):
    """One depth: its mask by original block index, its engines, and what the gates found.

    `precision` is what its weights are stored in, where their shapes allow; `quality` is what `Quality.to_json` gives,
    in its order: the first metric is the primary one.
    """

    name: Name
    depth: int
    kept: tuple[int, ...]
    skipped: tuple[int, ...]
    engines: tuple[EngineEntry, ...]
    precision: Precision = FP32
    parity: tuple[ParityRecord, ...] = ()
    quality: dict[str, Any] = Field(default_factory=dict)

    @field_validator("quality")
    @classmethod
    def _readable_quality(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            figures = Quality.from_json(value).to_json()
        except (KeyError, TypeError, AttributeError) as error:
            msg = f"quality is not what Quality.to_json gives ({error!r})"
            raise ValueError(msg) from error
        return {name: {key: _plain(item) for key, item in figure.items()} for name, figure in figures.items()}

    @model_validator(mode="after")
    def _one_engine_each(self) -> Self:
        keys = [(engine.backend, engine.target) for engine in self.engines]
        if len(set(keys)) != len(keys):
            msg = f"level {self.name} has two engines of one backend and target: {keys}; list each pair once"
            raise ValueError(msg)
        return self

    def mask(self, num_blocks: int) -> DepthMask:
        """The mask, checked against `depth` and `skipped`.

        Raises:
            ValueError: the three do not agree.
        """
        mask = DepthMask(self.kept, num_blocks)
        if (mask.depth, mask.skipped) != (self.depth, self.skipped):
            msg = (
                f"level {self.name} keeps {list(self.kept)} of {num_blocks} blocks, which is not depth {self.depth} "
                f"with {list(self.skipped)} skipped"
            )
            raise ValueError(msg)
        return mask


class VisionEntry(_Entry):
    """The vision side: its own blocks, and its own levels over the same weights, deepest first and nested."""

    num_blocks: int
    levels: tuple[LevelEntry, ...]

    @property
    def ladder(self) -> DepthLadder:
        """The levels' masks as the other stages know them."""
        return DepthLadder(tuple(DepthLevel(level.name, level.mask(self.num_blocks)) for level in self.levels))

    @model_validator(mode="after")
    def _is_a_ladder(self) -> Self:
        _ = self.ladder
        return self


class WeightsEntry(_Entry):
    """The weight file; `num_tensors` counts names, also those that share their bytes with another."""

    path: FilePath
    size_bytes: int = Field(ge=0)
    num_tensors: int = Field(ge=0)


class ManifestDraft(_Entry):
    """What a build knows; the writer adds the files.

    Nothing in it may differ between two builds of one recipe: no times, no absolute paths.

    Attributes:
        model: the model that was cut.
        num_blocks: blocks of the unpruned model.
        strategy: how the masks were chosen.
        notes: what a reader of the ladder must know.
        levels: deepest first, nested.
        vision: the vision side of a model that reads pictures, else None and left out.
        tools: package name to version.
        recipe: what was asked for.
        seeds: purpose to seed.
        data: purpose to a description of the data, e.g. its digest.
    """

    schema_version: int = SCHEMA_VERSION
    model: ModelSpec
    num_blocks: int
    strategy: str
    notes: tuple[str, ...] = ()
    levels: tuple[LevelEntry, ...]
    vision: VisionEntry | None = None
    tools: Annotated[dict[str, str], AfterValidator(_plain)] = Field(default_factory=dict)
    recipe: PlainDict = Field(default_factory=dict)
    seeds: Annotated[dict[str, int], AfterValidator(_plain)] = Field(default_factory=dict)
    data: PlainDict = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_a_ladder(self) -> Self:
        version = SCHEMA_VERSION if self.vision is None else VISION_SCHEMA_VERSION
        if self.schema_version != version:
            msg = f"schema_version is {self.schema_version}; this version writes {version} for such a bundle"
            raise ValueError(msg)
        counted = None if self.model.vision is None else self.model.vision.num_blocks
        if counted != (None if self.vision is None else self.vision.num_blocks):
            msg = f"the vision side must be listed with the {counted} blocks that the model says it has"
            raise ValueError(msg)
        if self.model.num_blocks != self.num_blocks:
            msg = f"num_blocks is {self.num_blocks}, but the model has {self.model.num_blocks} blocks"
            raise ValueError(msg)
        _ = self.ladder
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a vision side nothing is said of one: a manifest of a text model stays as it always was."""
        fields: dict[str, Any] = serialise(self)
        return fields if self.vision is not None else {k: v for k, v in fields.items() if k != "vision"}

    @property
    def all_levels(self) -> dict[str, LevelEntry]:
        """Every level by name, those of the vision side behind `VISION_PREFIX`."""
        vision = () if self.vision is None else self.vision.levels
        return {level.name: level for level in self.levels} | {f"{VISION_PREFIX}{v.name}": v for v in vision}

    @property
    def ladder(self) -> DepthLadder:
        """The levels' masks as the other stages know them."""
        levels = tuple(DepthLevel(level.name, level.mask(self.num_blocks)) for level in self.levels)
        return DepthLadder(levels, self.strategy, self.notes)

    def level(self, name: str) -> LevelEntry:
        """The level of that name; of the vision side by its name behind `VISION_PREFIX`.

        Raises:
            ConfigError: there is none.
        """
        levels = self.all_levels
        if name in levels:
            return levels[name]
        msg = f"no level {name!r}; this bundle has {', '.join(levels)}"
        raise ConfigError(msg)


class Manifest(ManifestDraft):
    """The whole manifest: a draft, the weight file, and every file but the manifest itself and the profiles."""

    weights: WeightsEntry
    files: tuple[FileEntry, ...]

    @model_validator(mode="after")
    def _files_are_whole(self) -> Self:
        sizes = {entry.path: entry.size_bytes for entry in self.files}
        if len({folded(path) for path in sizes}) != len(self.files):
            msg = f"file paths repeat, or differ in case only: {[entry.path for entry in self.files]}"
            raise ValueError(msg)
        for name, level in self.all_levels.items():
            for engine in level.engines:
                if engine.path not in sizes:
                    msg = f"engine {engine.path!r} of level {name} is not among the files {sorted(sizes)}"
                    raise ValueError(msg)
        if sizes.get(self.weights.path) != self.weights.size_bytes:
            msg = f"weights {self.weights.path!r} of {self.weights.size_bytes} bytes are not among the files"
            raise ValueError(msg)
        return self

    def to_bytes(self) -> bytes:
        """The only bytes that `from_bytes` takes for this manifest: canonical JSON that ends with its own digest.

        Raises:
            ConfigError: a text in it cannot be encoded.
        """
        return seal(self.model_dump(mode="json"), SEAL_FIELD)

    @property
    def digest(self) -> str:
        """SHA-256 that stands for the whole bundle without its profiles."""
        return str(parse_object(self.to_bytes(), "the manifest")[SEAL_FIELD])

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read what `to_bytes` gave.

        Raises:
            SchemaVersionError: the manifest is of a format that this version cannot read.
            IntegrityError: anything else is wrong with it.
        """
        version = parse_object(raw, "manifest.json").get("schema_version")
        if type(version) is int and version not in READABLE_VERSIONS:
            readable = ", ".join(map(str, READABLE_VERSIONS))
            msg = (
                f"the bundle's schema version is {version}, but this blockexport reads {readable}; "
                "rebuild the bundle, or install the version that wrote it"
            )
            raise SchemaVersionError(msg)
        value = unseal(raw, SEAL_FIELD, "manifest.json")
        try:
            manifest = cls.model_validate(value)
        except ValidationError as error:
            msg = f"manifest.json cannot be right: {explain(error)}; rebuild the bundle"
            raise IntegrityError(msg) from error
        # pydantic takes "1" for 1 and fields in any order; equal manifests must have equal bytes.
        if manifest.to_bytes() != raw:
            msg = "manifest.json is not in the form that blockexport writes; rebuild the bundle"
            raise IntegrityError(msg)
        return manifest


def explain(error: ValidationError) -> str:
    """The first few complaints of pydantic in one line."""
    complaints = [f"{'.'.join(map(str, item['loc'])) or 'manifest'}: {item['msg']}" for item in error.errors()]
    more = len(complaints) - _SHOWN_COMPLAINTS
    return "; ".join(complaints[:_SHOWN_COMPLAINTS]) + (f" and {more} more" if more > 0 else "")
