"""One pass over whole inputs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockexport.errors import RequestError
from blockexport.runtime.engines import Engines
from blockexport.runtime.prompts import check_pixels, pack_prompts, read_prompts, unpack_outputs


def run_whole(engines: Engines, level: str, inputs: Any, attention_mask: Any) -> NDArray[np.float32]:
    """Run a level as `Runtime.forward` describes it."""
    spec = engines.spec
    if isinstance(inputs, Mapping):
        attention_mask = inputs.get("attention_mask", attention_mask)
        name = "pixel_values" if spec.kind == "vision" else "input_ids"
        if name not in inputs:
            msg = f"inputs hold {', '.join(map(str, inputs)) or 'nothing'}; {spec.name} takes {name!r}"
            raise RequestError(msg)
        inputs = inputs[name]
    if spec.kind == "vision":
        return engines.single_pass(level).forward({"pixel_values": check_pixels(inputs, spec)})
    run = engines.whole_pass(level)
    if spec.kind == "encoder":
        # An encoder places tokens by column, so padding stays where it is.
        tokens, real = read_prompts(inputs, attention_mask, spec)
        return run({"input_ids": tokens, "attention_mask": real.astype(np.int64)})
    tokens, lengths, real = pack_prompts(inputs, attention_mask, spec)
    packed_mask = (np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int64)
    return unpack_outputs(run({"input_ids": tokens, "attention_mask": packed_mask}), real)
