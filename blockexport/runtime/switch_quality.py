"""How good a model is that changes its level in the middle of a text."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from blockexport.core.data import Dataset
from blockexport.core.quality import Quality, evaluate
from blockexport.runtime.engines import Engines
from blockexport.runtime.session import Session, Up
from blockexport.runtime.workspace import Workspace


def switch_quality(engines: Engines, data: Dataset, before: str, after: str, up: Up) -> Quality:
    """Quality when one level reads the first half of each text and another the rest, token by token.

    With `up="masked"` this is the figure of passing over a hole; `up="reprefill"` is what it is to be compared with,
    for the first halves are the same.

    Args:
        engines: levels of a decoder.
        data: texts with labels.
        before: level of the first half.
        after: level of the rest.
        up: what is done about tokens that `after` lacks.

    Raises:
        RequestError: there is no such level.
    """
    workspace = Workspace(engines, 1, max(sample.inputs["input_ids"].size for sample in data.samples))

    def forward(inputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        tokens, lengths = np.asarray(inputs["input_ids"], np.int64), np.asarray(inputs["attention_mask"]).sum(1)
        output = np.zeros((*tokens.shape, engines.spec.vocab_size), np.float32)
        for row, length in enumerate(lengths):
            half = max(int(length) // 2, 1)
            first = {"input_ids": tokens[row : row + 1, :half], "attention_mask": np.ones((1, half), np.int64)}
            output[row, :half] = engines.whole_pass(before)(first)[0]
            session = Session(engines, workspace, before, first["input_ids"], np.array([half]))
            session.run()
            session.switch(after, up=up)
            for index in range(half, int(length)):
                session.append(tokens[row, index : index + 1])
                output[row, index] = session.run()[0]
        return output

    return evaluate(forward, data)
