"""Packages of machine code for the levels of a bundle, besides the graphs that every host can run."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from numpy.typing import NDArray

from blockexport.backends.aotinductor.compile import SUFFIX, compile_program, demands
from blockexport.backends.aotinductor.host import find_compiler
from blockexport.backends.aotinductor.levels import AotLevels
from blockexport.bundle.layout import PARITY_FILE, WEIGHTS_FILE, package_file
from blockexport.bundle.manifest import EngineEntry, LevelEntry, ManifestDraft, ParityRecord
from blockexport.bundle.writer import BundleWriter
from blockexport.core.masks import DepthLadder
from blockexport.core.parity import ParityCase
from blockexport.core.precision import FP32, Precision
from blockexport.errors import ConfigError
from blockexport.export.audit import audit_names
from blockexport.export.lower.aten import AtenProgram, lower
from blockexport.export.parity import check_decoder, check_single_pass
from blockexport.export.trace import block_unit, trace
from blockexport.models.loaded import LoadedModel
from blockexport.pipeline.gates import GateKeeper
from blockexport.runtime.compiled import BACKEND
from blockexport.runtime.proof import recorded_cases


@dataclass(frozen=True, slots=True, eq=False)
class Packages:
    """What is compiled of one ladder.

    Attributes:
        model: the model.
        ladder: the levels.
        programs: by level name.
        requires: what the machine code will demand of a host.
        device: that it runs on.
    """

    model: LoadedModel
    ladder: DepthLadder
    programs: dict[str, AtenProgram]
    requires: dict[str, str]
    device: str

    @classmethod
    def of(cls, model: LoadedModel, ladder: DepthLadder, precision: Any, device: str) -> Self:
        """Trace a model once and cut every level, for one device.

        Raises:
            BackendUnavailableError: there is no compiler, or no such device.
            ConfigError: levels in another precision than fp32, or a model that reads text and pictures.
            ExportError: the model has an operator that torch cannot compile.
        """
        find_compiler()
        requires = demands(device)
        if model.vision_side is not None:
            msg = f"backend {BACKEND!r} compiles models that read one thing, {model.spec.name} reads two; leave it out"
            raise ConfigError(msg)
        asked = precision.values() if isinstance(precision, Mapping) else [precision]
        if any(entry != FP32 for entry in asked):
            stated = ", ".join(str(entry) for entry in asked if isinstance(entry, Precision))
            msg = f"backend {BACKEND!r} compiles fp32 levels, {stated} was asked for; use onnxruntime for the others"
            raise ConfigError(msg)
        marked = trace(_on(model, device))
        skipped = {level.name: [block_unit(block) for block in level.mask.skipped] for level in ladder.levels}
        programs = {name: lower(marked, units) for name, units in skipped.items()}
        return cls(model, ladder, programs, requires, device)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """What the programs read, by name in the weight file; most of it lies there already."""
        return {
            name: tensor.detach().cpu().numpy()
            for program in self.programs.values()
            for name, tensor in program.weights.items()
        }

    def add_to(self, draft: ManifestDraft, writer: BundleWriter, keeper: GateKeeper) -> ManifestDraft:
        """Compile and prove every level; minutes for a large model.

        Args:
            draft: what the bundle has without.
            writer: where the weights and the recorded answers of the eager reference are, and the packages go.
            keeper: told each verdict.

        Raises:
            BackendUnavailableError: the compiler fails.
            BundleError: torch cannot open what it compiled.
        """
        paths = {name: package_file(BACKEND, name, self.device, SUFFIX) for name in self.programs}
        places = {name: writer.path_for(path) for name, path in paths.items()}
        for name, program in self.programs.items():
            compile_program(program.program, places[name])
        signatures = {places[name]: program.signature for name, program in self.programs.items()}
        opener = AotLevels(writer.folder / WEIGHTS_FILE, signatures, device=self.device)
        cases = recorded_cases(writer.folder / PARITY_FILE)
        levels = []
        for level in draft.levels:
            engine = EngineEntry(
                backend=BACKEND,
                target=self.device,
                path=paths[level.name],
                signature=self.programs[level.name].signature,
                requires=self.requires,
            )
            records = self._prove(opener, places[level.name], level, cases[level.name], keeper)
            more = {"engines": (*level.engines, engine), "parity": (*level.parity, *records)}
            levels.append(level.model_copy(update=more))
        return draft.model_copy(update={"levels": tuple(levels)})

    def _prove(
        self, opener: AotLevels, path: Path, level: LevelEntry, cases: Sequence[ParityCase], keeper: GateKeeper
    ) -> tuple[ParityRecord, ...]:
        """Hold a package to the recorded answers, and look for what it has of skipped blocks."""
        spec = self.model.spec
        if spec.kind == "decoder":
            records = check_decoder(opener.decoder(path), spec.kv_layout(level.kept), cases)
        else:
            records = check_single_pass(opener.single_pass(path), cases)
        records = tuple(record.model_copy(update={"operators": "compiled"}) for record in records)
        keeper.parity(level.name, records)
        package = opener.package(path)
        inputs = [value.name for value in package.signature.inputs]
        findings = audit_names(package.lent, inputs, level.mask(spec.num_blocks), spec.block_path)
        keeper.audit(level.name, findings)
        return records


def _on(model: LoadedModel, device: str) -> LoadedModel:
    """The model, or a copy of it on another device."""
    if device == "cpu":
        return model
    with torch.no_grad():
        return LoadedModel(copy.deepcopy(model.module).to(device), model.spec, model.adapter)
