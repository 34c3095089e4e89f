"""The figure of a switch, against the eager reference's losses."""

from collections.abc import Callable

import numpy as np
import pytest

from blockexport.core.data import IGNORED_LABEL
from blockexport.core.quality import evaluate
from blockexport.runtime.switch_quality import switch_quality
from blockexport.testing.tiny_data import tiny_dataset

pytestmark = pytest.mark.slow

DATA = tiny_dataset("decoder", 7, seed=3)


@pytest.mark.parametrize("up", ["reprefill", "masked"])
@pytest.mark.parametrize(("before", "after"), [("d2", "d4"), ("d4", "d3")])
def test_it_is_the_loss_of_the_model_that_switches_there(before: str, after: str, up: str, ladder_of: Callable) -> None:
    ladder = ladder_of("llama")
    found = switch_quality(ladder.engines, DATA, before, after, up).metrics["bits_per_byte"]
    nats = num_bytes = 0.0
    for sample in DATA.samples:
        if sample.metric != "bits_per_byte":
            continue
        tokens, labels = sample.inputs["input_ids"].tolist(), sample.labels
        eager, half = ladder.eager(), len(tokens) // 2
        logits = [eager.run(tokens[:half], before)]
        logits += [eager.run([token], after, fill=up == "reprefill") for token in tokens[half:]]
        logits = np.concatenate(logits)[:-1]
        scored = labels[1:] != IGNORED_LABEL
        shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nats -= shares[scored, labels[1:][scored]].sum()
        num_bytes += sample.num_bytes
    # The loss of a token moves by at most twice what its logits do.
    allowed = 2 * ladder.tolerance * sum(map(len, (s.labels for s in DATA.samples))) / num_bytes / np.log(2)
    assert found.value == pytest.approx(nats / num_bytes / np.log(2), abs=allowed)


def test_without_a_switch_it_is_the_quality_of_the_level(ladder_of: Callable) -> None:
    engines = ladder_of("llama").engines
    for up in ("reprefill", "masked"):
        figures = [evaluate(engines.whole_pass("d3"), DATA), switch_quality(engines, DATA, "d3", "d3", up)]
        values = [[metric.value for metric in figure.metrics.values()] for figure in figures]
        assert np.allclose(*values, rtol=1e-5)
