"""AOTInductor: every level of a small decoder by the parity gate, over one set of weights."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from blockexport.backends.aotinductor.compile import SUFFIX, compile_program
from blockexport.backends.aotinductor.levels import AotLevels
from blockexport.bundle.layout import WEIGHTS_FILE
from blockexport.bundle.weights import write_weights
from blockexport.core.signature import Signature
from blockexport.export.lower.aten import lower
from blockexport.export.parity import check_decoder
from blockexport.export.trace import block_unit, trace
from blockexport.gpu_report.finding import Finding, Tier, verdict
from blockexport.gpu_report.models import SMALL_LADDER, small_decoder
from blockexport.masking.oracle import Oracle
from blockexport.models.loaded import LoadedModel

_SEED = 66
_CPU_LEVELS = 2
"""On a processor compiling takes longest, and two levels show what four do."""


def on_cpu() -> Iterator[Finding]:
    """Two levels on the processor."""
    yield from numerics("cpu", "cpu", _CPU_LEVELS)


def numerics(device: str, tier: Tier, num_levels: int) -> Iterator[Finding]:
    """Compile levels and hold each to the eager masked model; then change a weight that all of them read."""
    model = small_decoder()
    levels = SMALL_LADDER.levels[:num_levels]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        oracle = Oracle(model, _SEED)
        cases = {level.name: oracle.record(level.mask) for level in levels}
        there = model if device == "cpu" else LoadedModel(model.module.to(device), model.spec, model.adapter)
        marked = trace(there)
        signatures: dict[Path, Signature] = {}
        tensors: dict[str, NDArray[Any]] = {}
        for level in levels:
            program = lower(marked, [block_unit(block) for block in level.mask.skipped])
            path = folder / f"{level.name}{SUFFIX}"
            compile_program(program.program, path)
            signatures[path] = program.signature
            tensors |= {key: tensor.detach().cpu().numpy() for key, tensor in program.weights.items()}
        write_weights(folder / WEIGHTS_FILE, tensors)
        opener = AotLevels(folder / WEIGHTS_FILE, signatures, device=device)
        for level in levels:
            layout = model.spec.kv_layout(level.kept)
            records = check_decoder(opener.decoder(folder / f"{level.name}{SUFFIX}"), layout, cases[level.name])
            failures = [f"{record.check}: {record.max_abs_err:.3g}" for record in records if not record.passed]
            worst = max(record.max_abs_err / record.tolerance for record in records)
            yield verdict(f"aotinductor-{device}:{level.name}", tier, failures, {"error_over_tolerance": worst})
        yield _sharing(opener, [folder / f"{level.name}{SUFFIX}" for level in levels], device, tier)


# Of the head no other weight is a copy, so the file has it for itself; and twice the head is twice the logits.
_CHANGED = "lm_head.weight"


def _sharing(opener: AotLevels, paths: list[Path], device: str, tier: Tier) -> Finding:
    """Whether opened levels read the very tensors they were lent, and the same ones."""
    packages = [opener.package(path) for path in paths]
    pointers = {package.lent[_CHANGED].data_ptr() for package in packages}
    failures = [] if len(pointers) == 1 else [f"{len(pointers)} copies of a weight for {len(paths)} levels"]
    changes = 0
    with torch.no_grad():
        for package in packages:
            inputs = [_sample(value.dtype, value.shape, device) for value in package.signature.inputs]
            before = package.run(inputs).clone()
            package.lent[_CHANGED].mul_(2)
            changes += bool(torch.equal(package.run(inputs), 2 * before))
            package.lent[_CHANGED].mul_(0.5)
    if changes != len(packages):
        failures.append(f"{len(packages) - changes} levels do not read the weights they were lent")
    return verdict(f"aotinductor-{device}:one-set-of-weights", tier, failures, {"levels": len(packages)})


def _sample(dtype: str, shape: tuple[int | str, ...], device: str) -> torch.Tensor:
    """An input of one row and one token: the first."""
    sizes = {"capacity": 8}
    where = [size if isinstance(size, int) else sizes.get(size, 1) for size in shape]
    tensor = torch.zeros(where, dtype=getattr(torch, dtype), device=device)
    return tensor + 1 if not where else tensor
