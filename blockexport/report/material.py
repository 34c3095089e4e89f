"""All that a report is made of, read and checked before the first line is written."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockexport.bundle.layout import SCORES_FILE
from blockexport.bundle.manifest import LevelEntry, Manifest
from blockexport.bundle.reader import Bundle, open_bundle
from blockexport.core.hardware import HostFingerprint
from blockexport.core.jsonio import read_json
from blockexport.core.latency import LatencyPoint, LatencyProfile
from blockexport.core.latency_fit import PHASES, Phase
from blockexport.core.quality import MetricValue, Quality
from blockexport.core.scores import BlockScores
from blockexport.core.study import STUDY_FILE, Study
from blockexport.errors import ConfigError
from blockexport.report.memory import MemoryUse, measure_memory
from blockexport.report.switching import Switching


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What the sections draw on.

    Attributes:
        bundle: opened and verified.
        host: this host.
        profile: measured latencies; None when there are none of this build.
        is_own_profile: whether the profile is of this host.
        study: strategies compared; None when nobody did.
        scores: importance per block, one entry for each method; empty when unknown.
        memory: PSS, or why it is not known.
        switching: quality of texts whose level goes up half way; None when nobody gave texts.
    """

    bundle: Bundle
    host: HostFingerprint
    profile: LatencyProfile | None
    is_own_profile: bool
    study: Study | None
    scores: tuple[BlockScores, ...]
    memory: MemoryUse | str
    switching: Switching | None = None

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.bundle.manifest

    @property
    def folder(self) -> str:
        """The bundle's folder, as a shell takes it in a command."""
        return shlex.quote(self.bundle.folder.name)

    @property
    def metrics(self) -> list[str]:
        """Names of the main figures, without those of single tasks."""
        return [name for name in self.quality(self.manifest.levels[0]) if "/" not in name]

    @staticmethod
    def quality(level: LevelEntry) -> dict[str, MetricValue]:
        """All figures of a level by name; empty when none were measured."""
        return Quality.from_json(level.quality).metrics

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What a request goes through."""
        return PHASES[self.manifest.model.kind]

    def point(self, level: str, phase: Phase) -> LatencyPoint | None:
        """The measurement that stands for a level: one row, the longest prompt and cache measured for all levels."""
        if self.profile is None:
            return None
        points = [p for p in self.profile.points if (p.level, p.phase) == (level, phase)]
        return min(points, key=lambda p: (p.batch, -p.new_tokens, -p.kv_tokens), default=None)


def gather(path: Path, study: Study | None, switching: Switching | None = None) -> Material:
    """Read a bundle with all that lies in it, and measure its memory.

    Args:
        path: the bundle.
        study: strategies compared on the bundle's model; None for the one in the bundle, if any.
        switching: what was measured of going up in the middle of a text, if it was.

    Raises:
        BundleError: the bundle cannot be opened.
        ConfigError: the study or the scores are of another model, or unreadable.
        ProfileError: a profile is unreadable.
    """
    bundle = open_bundle(path)
    host = HostFingerprint.detect()
    profiles = [LatencyProfile.from_json(value) for value in bundle.read_profiles().values()]
    # That of all processors before those of fewer threads.
    profiles.sort(key=lambda found: (found.host != host, -found.threads))
    profile = profiles[0] if profiles else None
    study = study or _attached_study(bundle)
    _check_model(bundle, "study", study.model_digest if study else "")
    scores = study.scores if study else _attached_scores(bundle)
    for entry in scores:
        _check_model(bundle, "scores", entry.model)
    return Material(
        bundle=bundle,
        host=host,
        profile=profile,
        is_own_profile=profile is not None and profile.host == host,
        study=study,
        scores=scores,
        memory=measure_memory(bundle.folder, len(bundle.manifest.levels)),
        switching=switching,
    )


def _attached(bundle: Bundle, name: str) -> Any:
    """The JSON of a file that the manifest lists; anything else in the folder was refused when it was opened."""
    listed = any(entry.path == name for entry in bundle.manifest.files)
    return read_json(bundle.folder / name) if listed else None


def _attached_study(bundle: Bundle) -> Study | None:
    value = _attached(bundle, STUDY_FILE)
    return None if value is None else Study.from_json(value)


def _attached_scores(bundle: Bundle) -> tuple[BlockScores, ...]:
    value = _attached(bundle, SCORES_FILE)
    return () if value is None else (BlockScores.from_json(value, bundle.manifest.num_blocks),)


def _check_model(bundle: Bundle, what: str, digest: str) -> None:
    if digest not in ("", bundle.manifest.model.digest):
        name = bundle.manifest.model.name
        msg = f"the {what} is of another model than the bundle's, {name}; give the one of this model, or none"
        raise ConfigError(msg)
