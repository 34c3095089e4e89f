"""What is served, as the endpoints see it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from blockexport.core.jsonio import read_json
from blockexport.core.model import ModelSpec
from blockexport.errors import ConfigError
from blockexport.runtime.processor import Processor, has_processor, load_processor
from blockexport.runtime.runtime import Runtime
from blockexport.server.chat_template import ChatTemplate, special_tokens_of

Forward = Callable[[Mapping[str, NDArray[Any]], str | None], NDArray[np.float32]]
"""Inputs by name and a level, None for the deepest, to the output; to be called in the engine's thread only."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One bundle.

    Attributes:
        name: what callers call it.
        spec: the model.
        levels: deepest first, each with `name`, `depth` and `quality`, a figure by metric.
        forward: runs a level on whole inputs.
        tokenizer: a `tokenizers.Tokenizer`; None for a bundle without.
        template: how a conversation is written; None if the model was not taught one.
        processor: what writes prompts for a model that reads pictures; else None.
    """

    name: str
    spec: ModelSpec
    levels: tuple[Mapping[str, Any], ...]
    forward: Forward
    tokenizer: Any = None
    template: ChatTemplate | None = None
    processor: Processor | None = None

    @classmethod
    def of(cls, runtime: Runtime, *, name: str | None = None, template: Path | None = None) -> Self:
        """A loaded bundle.

        Args:
            runtime: the bundle.
            name: what callers call it; None for the model's own name.
            template: file with a chat template to use in place of the bundle's.

        Raises:
            ConfigError: the template cannot be read.
        """
        folder = runtime.bundle.tokenizer_folder
        return cls(
            name=name or runtime.spec.name,
            spec=runtime.spec,
            levels=tuple(_described(level) for level in runtime.levels),
            forward=runtime.forward,
            tokenizer=None if folder is None else runtime.tokenizer,
            template=_template(folder, template),
            processor=load_processor(runtime.bundle) if has_processor(runtime.bundle) else None,
        )


def _described(level: Any) -> dict[str, Any]:
    metrics = {} if level.quality is None else level.quality.metrics
    return {
        "name": level.name,
        "depth": level.depth,
        "quality": {name: figure.value for name, figure in metrics.items()},
    }


def _template(folder: Path | None, path: Path | None) -> ChatTemplate | None:
    if path is None:
        return None if folder is None else ChatTemplate.of_folder(folder)
    config = None if folder is None else folder / "tokenizer_config.json"
    settings = read_json(config) if config is not None and config.is_file() else {}
    try:
        return ChatTemplate(path.read_text(encoding="utf-8"), special_tokens_of(settings))
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read the chat template {path} ({error}); give the path of a text file"
        raise ConfigError(msg) from error
