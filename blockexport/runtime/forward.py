"""One pass over whole inputs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockexport.core.pictures import PICTURE_INPUTS
from blockexport.errors import RequestError
from blockexport.runtime.engines import Engines
from blockexport.runtime.prompt_batch import PromptBatch
from blockexport.runtime.prompts import check_pixels, read_prompts, unpack_outputs


def run_whole(
    engines: Engines, level: str, inputs: Any, attention_mask: Any, vision_level: str | None = None
) -> NDArray[np.float32]:
    """Run a level as `Runtime.forward` describes it."""
    spec = engines.spec
    pictures: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        pictures = {name: inputs[name] for name in PICTURE_INPUTS if name in inputs}
        attention_mask = inputs.get("attention_mask", attention_mask)
        name = "pixel_values" if spec.kind == "vision" else "input_ids"
        if name not in inputs:
            msg = f"inputs hold {', '.join(map(str, inputs)) or 'nothing'}; {spec.name} takes {name!r}"
            raise RequestError(msg)
        inputs = inputs[name]
    if spec.kind == "vision":
        return engines.single_pass(level).forward({"pixel_values": check_pixels(inputs, spec)})
    if spec.kind == "encoder":
        # An encoder places tokens by column, so padding stays where it is.
        tokens, real = read_prompts(inputs, attention_mask, spec)
        return engines.single_pass(level).forward({"input_ids": tokens, "attention_mask": real.astype(np.int64)})
    batch = PromptBatch.of(spec, inputs, attention_mask, *map(pictures.get, PICTURE_INPUTS))
    packed = engines.run_prompt(level, batch.tokens, batch.lengths, batch.pictures, vision_level)
    return unpack_outputs(packed, read_prompts(inputs, attention_mask, spec)[1])
