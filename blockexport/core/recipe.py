"""A build as a file states it: which model, how its blocks are chosen, and what the result must satisfy."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from blockexport.errors import ConfigError


def _no_empty_text(value: str) -> str:
    if not value.strip():
        msg = "must not be empty"
        raise ValueError(msg)
    return value


Text = Annotated[str, AfterValidator(_no_empty_text)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ScoreSection(_Section):
    """How blocks are scored.

    Attributes:
        method: name of the scoring method.
        data: `demo:...` or a file; None for the demo model's own.
        num_samples: samples to use; None for all.
        seed: of the draw of the samples.
        protected: blocks that stay at every depth.
    """

    method: Text = "accuracy_drop"
    data: Text | None = None
    num_samples: Annotated[StrictInt, Field(ge=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=0)] = 0
    protected: tuple[StrictInt, ...] = ()


class SelectSection(_Section):
    """Which blocks stay at each depth.

    Attributes:
        strategy: name of the strategy.
        depths: counts (whole numbers) or fractions (with a decimal point); `auto` for the full model, three quarters,
            a half and a quarter.
        threshold: for strategy `threshold`, in place of depths.
        min_depth: no level is shallower.
        beam_width: for strategy `beam`: combinations of each size that it goes on with.
        beam_depth: for strategy `beam`: removals that one decision looks ahead; None for those to the next level.
    """

    strategy: Text = "top_k"
    depths: Literal["auto"] | tuple[StrictInt | StrictFloat, ...] = "auto"
    threshold: tuple[float, ...] | float | None = None
    min_depth: Annotated[StrictInt, Field(ge=1)] = 1
    beam_width: Annotated[StrictInt, Field(ge=1)] | None = None
    beam_depth: Annotated[StrictInt, Field(ge=1)] | None = None


class QualitySection(_Section):
    """What the quality of each level is measured on; None for the demo model's own data, or for no quality."""

    data: Text | None = None


class VisionSection(_Section):
    """How the levels of the vision side of a model that reads pictures are chosen: by what the whole model then says.

    Attributes:
        score: as for the model itself, by `loss_drop` or `accuracy_drop`; data and samples are those of the recipe's
            own section `score` where they are left out.
        select: as for the model itself.
    """

    score: ScoreSection = Field(default_factory=ScoreSection)
    select: SelectSection = Field(default_factory=SelectSection)


class GatesSection(_Section):
    """What the build must satisfy besides parity and audit.

    Attributes:
        max_build_seconds: for everything from scoring to the last gate.
        min_quality: per metric, what every level must reach; for metrics where lower is better, stay below.
    """

    max_build_seconds: Annotated[float, Field(gt=0)] | None = None
    min_quality: dict[str, float] = Field(default_factory=dict)


class Recipe(_Section):
    """A whole build.

    Attributes:
        schema_version: of this file format.
        model: `demo:...` or a model folder.
        out: where the bundle goes.
        backends: who will run the engines.
        precision: what weights are stored in, such as `bf16` or `int4g32`; or by level name, where others are fp32.
        vision_ladder: ladder file for the vision side of a model that reads pictures.
        vision: how such a ladder is made, in place of the file; without either the vision side keeps its full depth.
    """

    schema_version: Literal[1] = 1
    model: Text
    out: Text
    backends: tuple[Text, ...] = ("onnxruntime",)
    precision: Text | dict[str, Text] = "fp32"
    vision_ladder: Text | None = None
    score: ScoreSection = Field(default_factory=ScoreSection)
    select: SelectSection = Field(default_factory=SelectSection)
    vision: VisionSection | None = None
    quality: QualitySection = Field(default_factory=QualitySection)
    gates: GatesSection = Field(default_factory=GatesSection)

    @model_validator(mode="after")
    def _has_one_vision_ladder(self) -> Self:
        if self.vision is not None and self.vision_ladder is not None:
            msg = "vision_ladder names a file and section [vision] says how to make one; keep one of them"
            raise ValueError(msg)
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a TOML file.

        Raises:
            ConfigError: the file is missing, is not TOML, or says something that a recipe cannot say.
        """
        try:
            value = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            msg = f"cannot read recipe {path}: {error.strerror or error}; give an existing TOML file"
            raise ConfigError(msg) from error
        except ValueError as error:
            msg = f"recipe {path} is not valid TOML ({error}); correct it"
            raise ConfigError(msg) from error
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            complaints = "; ".join(_complaint(item["loc"], item["type"], item["msg"]) for item in error.errors())
            msg = f"recipe {path}: {complaints}; correct it"
            raise ConfigError(msg) from error


def _complaint(place: tuple[int | str, ...], kind: str, text: str) -> str:
    name = ".".join(str(part) for part in place if isinstance(part, int) or not part.startswith(("tuple[", "literal[")))
    if kind == "extra_forbidden":
        return f"unknown key {name!r}, allowed here are {', '.join(_allowed(place[:-1]))}"
    if kind == "missing":
        return f"key {name!r} is missing"
    return f"{name}: {text}" if name else text.removeprefix("Value error, ")


def _allowed(section: tuple[int | str, ...]) -> list[str]:
    model: Any = Recipe
    for name in section:
        field: FieldInfo = model.model_fields[str(name)]
        # A section that may be left out is one of several types.
        types = get_args(field.annotation) or (field.annotation,)
        model = next(kind for kind in types if hasattr(kind, "model_fields"))
    return list(model.model_fields)
