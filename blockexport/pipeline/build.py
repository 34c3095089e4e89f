"""Model and ladder to a verified bundle: trace once, cut every depth, write the weights once, prove each engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors
from torch import nn

from blockexport.bundle.layout import PARITY_FILE, TOKENIZER_FOLDER, VISION_PREFIX, WEIGHTS_FILE, engine_file
from blockexport.bundle.manifest import (
    SCHEMA_VERSION,
    VISION_SCHEMA_VERSION,
    EngineEntry,
    LevelEntry,
    ManifestDraft,
    ParityRecord,
    VisionEntry,
)
from blockexport.bundle.reader import Bundle, open_bundle
from blockexport.bundle.weights import TensorLocation, write_weights
from blockexport.bundle.writer import BundleWriter
from blockexport.core.data import Dataset, check_tokens
from blockexport.core.hardware import installed_versions
from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.core.parity import ParityCase, pack_cases
from blockexport.core.precision import FP32, Precision
from blockexport.core.quality import Forward, Quality, evaluate
from blockexport.datasets import load_dataset
from blockexport.errors import ConfigError, ScoresError
from blockexport.export.graph_file import shared_tensors, signature_of, to_bytes
from blockexport.models.loaded import LoadedModel, as_loaded
from blockexport.models.loading import load_model
from blockexport.pipeline.gates import GateKeeper, Gates
from blockexport.pipeline.packages import Packages
from blockexport.pipeline.parts import Part
from blockexport.pipeline.prove import Prover
from blockexport.runtime import compiled
from blockexport.runtime.engines import BACKEND

BACKENDS = (BACKEND,)
"""What is built when nothing else is asked for, and in any case: quality is measured on it, and any host can run it."""
CHOICES = (BACKEND, compiled.BACKEND)
_TOOLS = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "safetensors")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
# How pictures are cut; what the one leaves out the other says.
_PICTURE_FILES = ("preprocessor_config.json", "config.json")

Records = dict[str, tuple[ParityRecord, ...]]
Stage = Callable[[str, float], None]
"""Called with what begins and the share of the build that is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build, besides the model and the ladder.

    Attributes:
        data: what quality is measured on: a dataset, a name or file; None for the demo's own, or for no quality.
        gates: demands on the result.
        precision: what weights are stored in: one for all levels, or by level name, where those left out are fp32. The
            vision side is fp32.
        vision_ladder: levels of the vision side of a model that reads pictures; None for its full depth only.
        seed: seed of the parity inputs.
        overwrite: whether a bundle at the same place may be replaced.
        device: what machine code is compiled for: `cpu` or `cuda`.
        cache_folder: where traces are kept between builds; None for not at all.
        recipe: what was asked for, kept in the manifest.
        attachments: further files for the bundle, by path in it, such as the scores the ladder rests on.
    """

    data: Dataset | str | Path | None = None
    gates: Gates = field(default_factory=Gates)
    precision: Precision | Mapping[str, Precision] = FP32
    vision_ladder: DepthLadder | None = None
    seed: int = 66
    device: str = compiled.DEVICE
    overwrite: bool = True
    cache_folder: Path | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    attachments: Mapping[str, bytes] = field(default_factory=dict)


def build(
    model: LoadedModel | nn.Module | str | Path,
    ladder: DepthLadder,
    *,
    backends: Sequence[str] = BACKENDS,
    out: str | Path,
    options: BuildOptions | None = None,
    keeper: GateKeeper | None = None,
    on_stage: Stage | None = None,
) -> Bundle:
    """Build a bundle: engines for every level, one weight file, every gate passed.

    Args:
        model: a loaded model, a transformers module, or what `load_model` takes.
        ladder: the levels.
        backends: who will run the engines: `onnxruntime`, whose graphs every bundle has, and `aotinductor`.
        out: where the bundle goes; replaced in one step, or not at all.
        options: see `BuildOptions`.
        keeper: collects the gates' verdicts, also those of a build that fails.
        on_stage: told what begins.

    Returns:
        The bundle, opened.

    Raises:
        ConfigError: an unknown backend, or a ladder for another model or number of blocks.
        GateError: a gate said no; nothing was written.
        ExportError: the model cannot be traced or lowered.
        BundleError: the bundle cannot be written there.
    """
    options = options or BuildOptions()
    _check_backends(backends)
    loaded = load_model(model) if isinstance(model, str | Path) else as_loaded(model)
    loaded.check_mask(ladder.levels[0].mask)
    _check_vision(loaded, options.vision_ladder)
    if ladder.model and ladder.model != loaded.spec.digest:
        msg = f"the ladder rests on scores of another model than {loaded.spec.name}; score and select for this one"
        raise ScoresError(msg)
    keeper = keeper or GateKeeper(options.gates)
    work = _Build(loaded, ladder, options, keeper, on_stage or (lambda _what, _share: None), tuple(backends))
    with BundleWriter(Path(out), overwrite=options.overwrite) as writer:
        draft = work.run(writer)
        keeper.duration()
        keeper.enforce()
        writer.commit(draft)
    return open_bundle(Path(out), verify=False)


def _check_backends(backends: Sequence[str]) -> None:
    unknown = sorted(set(backends) - set(CHOICES))
    if unknown or not backends:
        msg = f"backends {list(backends)} cannot be built; choose from {', '.join(CHOICES)}"
        raise ConfigError(msg)


def _check_vision(model: LoadedModel, ladder: DepthLadder | None) -> None:
    side = model.vision_side
    if ladder is not None and side is None:
        msg = f"a ladder for the vision side was given, but {model.spec.name} reads one thing only; leave it out"
        raise ConfigError(msg)
    if ladder is not None and side is not None:
        side.check_mask(ladder.levels[0].mask)
        if ladder.model not in {"", model.spec.vision_scores_digest}:
            msg = f"the vision ladder rests on other scores than those of {model.spec.name} --vision; score it --vision"
            raise ScoresError(msg)


@dataclass(frozen=True, slots=True)
class _Build:
    model: LoadedModel
    ladder: DepthLadder
    options: BuildOptions
    keeper: GateKeeper
    on_stage: Stage
    backends: tuple[str, ...]

    def run(self, writer: BundleWriter) -> ManifestDraft:
        """Fill the writer's folder and say what is in it."""
        # Before minutes are spent on tracing.
        data = self._quality_data()
        self.on_stage("tracing the model", 0.0)
        options = self.options
        text = Part.of(self.model, self.ladder, options.precision, options.cache_folder)
        vision = self._vision_part()
        packages = None
        if compiled.BACKEND in self.backends:
            packages = Packages.of(self.model, self.ladder, options.precision, options.device)
        self.on_stage("cutting depths", 0.35)
        parts = [text] if vision is None else [vision, text]
        graphs = {part.prefix: part.graphs() for part in parts}
        # Levels of one precision are nested, so only levels of another bring tensors that the deepest does not have.
        tensors = {
            name: tensor
            for part in graphs.values()
            for graph in part.values()
            for name, tensor in shared_tensors(graph).items()
        }
        if packages is not None:
            tensors |= packages.tensors()
        locations = write_weights(writer.path_for(WEIGHTS_FILE), tensors)
        engines = {
            prefix: {
                (level, target): self._write_engine(writer, f"{prefix}{level}", target, graph, locations)
                for (level, target), graph in part.items()
            }
            for prefix, part in graphs.items()
        }
        self._add_tokenizer(writer)
        for path, content in self.options.attachments.items():
            writer.add_bytes(path, content)
        draft = self._prove(writer, engines, text, vision, data)
        if packages is None:
            return draft
        self.on_stage("compiling every level", 0.9)
        return packages.add_to(draft, writer, self.keeper)

    def _vision_part(self) -> Part | None:
        side = self.model.vision_side
        if side is None:
            return None
        ladder = self.options.vision_ladder or DepthLadder.from_masks([DepthMask.full(side.num_blocks)])
        return Part.of(side, ladder, FP32, self.options.cache_folder, VISION_PREFIX)

    def _write_engine(
        self, writer: BundleWriter, level: str, target: str, graph: ir.Model, locations: Mapping[str, TensorLocation]
    ) -> EngineEntry:
        path = engine_file(level, target)
        signature = signature_of(graph)
        writer.add_bytes(path, to_bytes(graph, locations))
        return EngineEntry(backend=BACKEND, target=target, path=path, signature=signature)

    def _add_tokenizer(self, writer: BundleWriter) -> None:
        if self.model.tokenizer_dir is not None:
            for name in (*_TOKENIZER_FILES, *(_PICTURE_FILES if self.model.spec.vision else ())):
                source = self.model.tokenizer_dir / name
                if source.is_file():
                    writer.add_bytes(f"{TOKENIZER_FOLDER}/{name}", source.read_bytes())

    def _prove(
        self,
        writer: BundleWriter,
        engines: Mapping[str, Mapping[tuple[str, str], EngineEntry]],
        text: Part,
        vision: Part | None,
        data: Dataset | None,
    ) -> ManifestDraft:
        self.on_stage("recording the eager reference", 0.4)
        cases: dict[str, tuple[ParityCase, ...]] = {}

        def prove(part: Part, vision: Prover | None, begin: float, span: float) -> tuple[Prover, Records]:
            paths = {key: writer.folder / engine.path for key, engine in engines[part.prefix].items()}
            prover = Prover(part.model, part.ladder, paths, self.keeper, prefix=part.prefix, vision=vision)
            found, records = prover.parity(
                part.sources,
                self.options.seed,
                lambda level, share: self.on_stage(f"proving level {part.prefix}{level}", begin + span * share),
            )
            cases.update({f"{part.prefix}{level}": recorded for level, recorded in found.items()})
            prover.audit()
            return prover, records

        side, side_entry, begin = None, None, 0.4
        if vision is not None:
            side, records = prove(vision, None, begin, 0.1)
            side_levels = vision.entries(engines[vision.prefix], records, {})
            side_entry, begin = VisionEntry(num_blocks=vision.ladder.num_blocks, levels=side_levels), 0.5
        prover, records = prove(text, side, begin, 0.7 - begin)
        writer.add_bytes(PARITY_FILE, save_tensors(*pack_cases(cases)))
        self.on_stage("measuring the quality of every level", 0.7)
        quality = prover.quality(lambda forward: self._quality(forward, data))
        return self._draft(text.entries(engines[text.prefix], records, quality), side_entry, data)

    def _quality_data(self) -> Dataset | None:
        data = self.options.data
        if data is None and self.model.spec.name.startswith("demo:"):
            data = self.model.spec.name
        if isinstance(data, Dataset):
            for sample in data.samples:
                if "input_ids" in sample.inputs:
                    check_tokens(sample.inputs["input_ids"], self.model.spec)
        if data is None or isinstance(data, Dataset):
            return data
        return load_dataset(data, self.model.spec, self.model.tokenizer_dir, split="test")

    def _quality(self, forward: Forward, data: Dataset | None) -> Quality | None:
        if data is None:
            return None
        needs_reference = any(sample.metric == "cosine" for sample in data.samples)
        return evaluate(forward, data, reference=self._full_forward if needs_reference else None)

    def _full_forward(self, inputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        with torch.no_grad():
            tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
            outputs = self.model(**self.model.arguments(tensors))
            output: NDArray[np.float32] = getattr(outputs, self.model.spec.output).numpy()
        return output

    def _draft(self, levels: tuple[LevelEntry, ...], vision: VisionEntry | None, data: Dataset | None) -> ManifestDraft:
        return ManifestDraft(
            schema_version=SCHEMA_VERSION if vision is None else VISION_SCHEMA_VERSION,
            vision=vision,
            model=self.model.spec,
            num_blocks=self.ladder.num_blocks,
            strategy=self.ladder.strategy,
            notes=self.ladder.notes,
            levels=levels,
            tools=installed_versions(_TOOLS),
            recipe=dict(self.options.recipe),
            seeds={"parity": self.options.seed},
            data={"quality": {"name": data.name, "digest": data.digest, "samples": len(data)}} if data else {},
        )
