"""A recipe file to a bundle: score, select, build, prove; and nothing at all when nothing has changed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockexport.bundle.layout import SCORES_FILE, VISION_SCORES_FILE
from blockexport.bundle.reader import Bundle, open_bundle
from blockexport.core.jsonio import dump_json, read_json
from blockexport.core.masks import DepthLadder
from blockexport.core.recipe import Recipe, ScoreSection, SelectSection
from blockexport.errors import BundleError, ConfigError
from blockexport.pipeline.fingerprint import code_digest, data_digest, digest_value, model_digest, tool_versions
from blockexport.pipeline.gates import GateKeeper, Gates
from blockexport.pipeline.summary import BuildReport

if TYPE_CHECKING:
    from blockexport.core.data import Dataset
    from blockexport.core.scores import BlockScores
    from blockexport.models.loaded import LoadedModel

Stage = Callable[[str, float], None]
"""Called with what begins and the share of the work that is done, 0 to 1."""

_SCORING_SHARE = 0.3
_SELECTING_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class RecipeOptions:
    """How to run a recipe.

    Attributes:
        out: another place for the bundle than the recipe's.
        cache_folder: where scores and traces are kept; None for nowhere.
        force: build even if nothing has changed.
        on_stage: told what begins.
    """

    out: Path | None = None
    cache_folder: Path | None = None
    force: bool = False
    on_stage: Stage = lambda _what, _share: None


def run_recipe(path: Path, options: RecipeOptions | None = None) -> BuildReport:
    """Bring the bundle of a recipe up to date.

    A bundle that was made from the same recipe, model, data, tools and code, and whose bytes are still those that
    were written, is left as it is; torch is not even imported then.

    Args:
        path: the recipe; relative paths in it start at its folder.
        options: see `RecipeOptions`.

    Raises:
        ConfigError: the recipe or what it names cannot be used.
        GateError: a gate said no; there is no new bundle, and an existing one is as it was.
        BlockExportError: a stage failed.
    """
    options = options or RecipeOptions()
    recipe = Recipe.read(path)
    gates = Gates(dict(recipe.gates.min_quality), recipe.gates.max_build_seconds)
    keeper = GateKeeper(gates)
    run = _Run(recipe, path.parent, options, gates, keeper)
    inputs = run.inputs()
    bundle = None if options.force else _up_to_date(run.out, inputs)
    if bundle is not None:
        return BuildReport(bundle, keeper.seconds, unchanged=True)
    return run.build(inputs)


def _up_to_date(out: Path, inputs: dict[str, Any]) -> Bundle | None:
    try:
        bundle = open_bundle(out, verify=True)
    except BundleError:
        return None
    return bundle if bundle.manifest.recipe.get("inputs") == inputs else None


@dataclass(frozen=True, slots=True)
class _Run:
    recipe: Recipe
    folder: Path
    options: RecipeOptions
    gates: Gates
    keeper: GateKeeper

    @property
    def out(self) -> Path:
        return self.options.out or self.folder / self.recipe.out

    def inputs(self) -> dict[str, Any]:
        """Everything the bundle's bytes follow from, without a single path of this machine."""
        recipe = self.recipe
        return {
            "recipe": digest_value(self.stated()),
            "model": model_digest(self.locate(recipe.model)),
            "score_data": data_digest(self.locate_data(recipe.score.data)),
            "vision_ladder": data_digest(self.locate_data(recipe.vision_ladder)),
            "vision_data": None if recipe.vision is None else data_digest(self.locate_data(recipe.vision.score.data)),
            "quality_data": data_digest(self.locate_data(recipe.quality.data)),
            "tools": tool_versions(),
            "code": code_digest(),
        }

    def stated(self) -> dict[str, Any]:
        """The recipe as the manifest keeps it: where things lie on this machine is left out, their names are not."""
        value = self.recipe.model_dump(mode="json", exclude={"out"})
        value["model"] = _name(self.recipe.model)
        value["vision_ladder"] = _name(self.recipe.vision_ladder)
        vision = [] if value["vision"] is None else [value["vision"]["score"]]
        for section in (value["score"], value["quality"], *vision):
            section["data"] = _name(section["data"])
        return value

    def locate(self, source: str) -> str:
        """A model or data as the recipe names it; relative paths start at the recipe's folder."""
        return source if source.startswith("demo:") else str(self.folder / source)

    def locate_data(self, source: str | None) -> str | None:
        return None if source is None else self.locate(source)

    def build(self, inputs: dict[str, Any]) -> BuildReport:
        # Everything from here on needs torch, which takes seconds to import.
        from blockexport.models.loading import load_model  # noqa: PLC0415
        from blockexport.pipeline.build import BuildOptions  # noqa: PLC0415
        from blockexport.pipeline.build_step import build_with_summary  # noqa: PLC0415
        from blockexport.pipeline.precisions import read_precisions  # noqa: PLC0415

        self.options.on_stage("loading the model", 0.0)
        model = load_model(self.locate(self.recipe.model))
        ladder, scores = self.choose(model, self.recipe.score, self.recipe.select)
        vision_ladder, vision_scores = self.vision_ladder(model)
        options = BuildOptions(
            data=self.locate_data(self.recipe.quality.data),
            gates=self.gates,
            precision=read_precisions(self.recipe.precision),
            vision_ladder=vision_ladder,
            cache_folder=self.options.cache_folder,
            recipe={"stated": self.stated(), "inputs": inputs},
            attachments=scores | vision_scores,
        )
        return build_with_summary(
            model,
            ladder,
            out=self.out,
            backends=self.recipe.backends,
            options=options,
            keeper=self.keeper,
            on_stage=lambda what, share: self.options.on_stage(what, _SELECTING_SHARE + (1 - _SELECTING_SHARE) * share),
        )

    def vision_ladder(self, model: "LoadedModel") -> tuple[DepthLadder | None, dict[str, bytes]]:
        """Levels of the vision side, read or made, and the scores that they rest on, as files of the bundle."""
        section, path = self.recipe.vision, self.locate_data(self.recipe.vision_ladder)
        if section is None:
            return None if path is None else DepthLadder.from_json(read_json(Path(path))), {}
        given = section.score.model_fields_set
        own = self.recipe.score
        same = {name: getattr(own, name) for name in ("data", "num_samples", "seed") if name not in given}
        return self.choose(model, section.score.model_copy(update=same), section.select, vision=True)

    def choose(
        self, model: "LoadedModel", score: ScoreSection, select: SelectSection, *, vision: bool = False
    ) -> tuple[DepthLadder, dict[str, bytes]]:
        """A ladder by two sections of the recipe, and its scores as a file of the bundle."""
        scores, data = self.score(model, score, vision=vision)
        ladder = self.select(model, scores, data.take(score.num_samples or len(data), score.seed), select)
        file = VISION_SCORES_FILE if vision else SCORES_FILE
        return ladder, {file: (dump_json(scores.to_json()) + "\n").encode()}

    def score(self, model: "LoadedModel", section: ScoreSection, *, vision: bool) -> "tuple[BlockScores, Dataset]":
        from blockexport.datasets import load_dataset  # noqa: PLC0415
        from blockexport.pipeline.score_cache import cached_scores  # noqa: PLC0415

        source = self.locate_data(section.data) or (model.spec.name if model.spec.name.startswith("demo:") else None)
        if source is None:
            msg = f"the recipe names no data to score {model.spec.name} on; add `data` to its section [score]"
            raise ConfigError(msg)
        data = load_dataset(source, model.spec, model.tokenizer_dir)
        scores = cached_scores(
            model,
            method=section.method,
            data=data,
            protected=section.protected,
            seed=section.seed,
            num_samples=section.num_samples,
            vision=vision,
            cache_folder=self.options.cache_folder,
            on_progress=lambda done, total: self.options.on_stage(
                "scoring blocks", _SCORING_SHARE * done / max(total, 1)
            ),
        )
        return scores, data

    def select(
        self, model: "LoadedModel", scores: "BlockScores", data: "Dataset", section: SelectSection
    ) -> DepthLadder:
        from blockexport.pipeline.depths import auto_depths  # noqa: PLC0415
        from blockexport.selection import select  # noqa: PLC0415

        self.options.on_stage("selecting blocks", _SCORING_SHARE)
        auto = auto_depths(scores, section.strategy, section.min_depth)
        return select(
            scores,
            depths=auto if section.depths == "auto" else section.depths,
            strategy=section.strategy,
            threshold=section.threshold,
            min_depth=section.min_depth,
            beam_width=section.beam_width,
            beam_depth=section.beam_depth,
            model=model,
            data=data,
            on_progress=lambda done, total: self.options.on_stage(
                "selecting blocks", _SCORING_SHARE + (_SELECTING_SHARE - _SCORING_SHARE) * done / max(total, 1)
            ),
        )


def _name(source: str | None) -> str | None:
    return source if source is None or source.startswith("demo:") else Path(source).name
