"""Every error blockexport raises on purpose.

    BlockExportError
    ├── ConfigError (ValueError)           a value given by the caller is not allowed
    │   ├── MaskError                      a mask or ladder that cannot be
    │   ├── ScoresError                    scores that are NaN, empty, or of another model
    │   └── DataError                      an empty, missing or misshapen dataset
    ├── ModelSupportError (ValueError)     a checkpoint or architecture this version cannot take
    ├── ExportError                        tracing, cutting or lowering failed
    ├── GateError                          a gate said no; the build leaves no bundle
    │   ├── ParityError                    an engine differs from the masked eager reference
    │   ├── AuditError                     a skipped block left something in an engine
    │   ├── QualityError                   a level is below the recipe's minimum quality
    │   └── BuildBudgetError               the build took longer than the recipe allows
    ├── BundleError
    │   ├── IntegrityError                 a bundle's bytes are not what its manifest says
    │   └── SchemaVersionError             a bundle of a format this version cannot read
    ├── BackendUnavailableError            an optional package is missing or unusable
    ├── RequestError (ValueError)          a request the loaded model cannot serve
    ├── EngineFaultError                   an engine raised, hung, or gave what no token can be drawn from
    ├── ServiceClosedError                 the service is about to stop and takes nothing more in
    └── RoutingError
        ├── ProfileError                   no usable latency profile for this host
        └── BudgetInfeasibleError          no level fits the budget

A message says what was given, what is allowed, and what to do next, in one line.
"""

from typing import ClassVar


class BlockExportError(Exception):
    """Base of all errors; `exit_code` is what the command line exits with."""

    exit_code: ClassVar[int] = 1


class ConfigError(BlockExportError, ValueError):
    """A value given by the caller is not allowed."""

    exit_code = 2


class MaskError(ConfigError):
    """A mask or ladder that cannot be."""


class ScoresError(ConfigError):
    """Scores that are NaN, empty, or of another model."""


class DataError(ConfigError):
    """An empty, missing or misshapen dataset."""


class ModelSupportError(BlockExportError, ValueError):
    """A checkpoint or architecture this version cannot take."""

    exit_code = 2


class ExportError(BlockExportError):
    """Tracing, cutting or lowering failed."""


class GateError(BlockExportError):
    """A gate said no; the build leaves no bundle."""

    exit_code = 3


class ParityError(GateError):
    """An engine differs from the masked eager reference."""


class AuditError(GateError):
    """A skipped block left something in an engine."""


class QualityError(GateError):
    """A level is below the recipe's minimum quality."""


class BuildBudgetError(GateError):
    """The build took longer than the recipe allows."""


class BundleError(BlockExportError):
    """A bundle that cannot be written or read."""

    exit_code = 2


class IntegrityError(BundleError):
    """A bundle's bytes are not what its manifest says."""


class SchemaVersionError(BundleError):
    """A bundle of a format this version cannot read."""


class BackendUnavailableError(BlockExportError):
    """An optional package is missing or unusable."""

    exit_code = 2


class RequestError(BlockExportError, ValueError):
    """A request the loaded model cannot serve."""

    exit_code = 2


class EngineFaultError(BlockExportError):
    """An engine raised, hung, or gave what no token can be drawn from; another level can go on.

    Attributes:
        level: index of its level.
        steps_taken: decode steps that were handed out before.
    """

    def __init__(self, level: int, message: str) -> None:
        super().__init__(message)
        self.level = level
        self.steps_taken = 0


class ServiceClosedError(BlockExportError):
    """The service is about to stop and takes nothing more in."""


class RoutingError(BlockExportError):
    """No routing decision can be made."""

    exit_code = 2


class ProfileError(RoutingError):
    """No usable latency profile for this host."""


class BudgetInfeasibleError(RoutingError):
    """No level fits the budget; `fastest_ms` is the smallest bound any level could promise."""

    exit_code = 3

    def __init__(self, message: str, fastest_ms: float) -> None:
        super().__init__(message)
        self.fastest_ms = fastest_ms
