"""The checks that a processor can take, without the compilers that make them slow."""

from functools import partial
from itertools import pairwise

import pytest
import torch

from blockexport.core.masks import DepthMask
from blockexport.export.trace import trace
from blockexport.gpu_report.checks import torch_compile
from blockexport.gpu_report.models import LARGE_KEPT, SMALL_BLOCKS, SMALL_LADDER, small_decoder
from blockexport.gpu_report.step import StepInputs, lower_step
from blockexport.masking.compiled import compile_level
from blockexport.masking.masked import masked


def test_the_check_of_torch_compile_holds_a_level_to_the_masked_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_compile, "compile_level", partial(compile_level, backend="aot_eager"))
    (finding,) = torch_compile.on_cpu()
    assert (finding.id, finding.tier, finding.status) == ("torch-compile-cpu:d2", "cpu", "pass"), finding
    assert 0 < finding.metrics["error_over_tolerance"] <= 1


def test_a_level_that_is_wrong_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = DepthMask.from_kept((1, 2), SMALL_BLOCKS)
    monkeypatch.setattr(
        torch_compile, "compile_level", lambda model, _mask, **kw: compile_level(model, wrong, backend="eager", **kw)
    )
    (finding,) = torch_compile.on_cpu()
    assert finding.status == "fail"


def test_a_step_on_shared_inputs_is_that_of_the_masked_model() -> None:
    model = small_decoder()
    mask = SMALL_LADDER.levels[2].mask
    program = lower_step(trace(model), mask, capacity=16)
    inputs = StepInputs(model.spec, 16, torch.float32, device="cpu")
    module = program.program.module(check_guards=False)
    tokens = [3, 1, 4, 1, 5]
    with torch.no_grad():
        for position, token in enumerate(tokens):
            inputs.set(token, position)
            (logits,) = module(*(inputs.tensors[value.name] for value in program.signature.inputs))
        with masked(model, mask):
            expected = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[:, -1:]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_the_large_levels_are_a_ladder() -> None:
    deepest_first = [set(LARGE_KEPT[depth]) for depth in sorted(LARGE_KEPT, reverse=True)]
    assert [len(kept) for kept in deepest_first] == [28, 21, 14, 7]
    assert all(shallow < deep for deep, shallow in pairwise(deepest_first))
