"""Conversations to prompts, by the template that comes with a tokenizer."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from blockexport.core.jsonio import read_json
from blockexport.errors import ConfigError, RequestError

_FILE = "chat_template.jinja"


class ChatTemplate:
    """A Jinja template, run in a sandbox.

    Args:
        source: of the template.
        special_tokens: what templates may write: `bos_token`, `eos_token`, ...

    Raises:
        ConfigError: the template is no Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            msg = f"the chat template cannot be read ({error}); give a Jinja template"
            raise ConfigError(msg) from error
        self._special_tokens = dict(special_tokens)

    @classmethod
    def of_folder(cls, folder: Path) -> Self | None:
        """The template of a tokenizer's folder; None if it has none.

        A file of its own counts more than what `tokenizer_config.json` says; of several named ones, `default` is taken.
        """
        path = folder / "tokenizer_config.json"
        settings: Mapping[str, Any] = read_json(path) if path.is_file() else {}
        source = settings.get("chat_template")
        if isinstance(source, list):
            named = {entry["name"]: entry["template"] for entry in source}
            source = named.get("default")
        if (folder / _FILE).is_file():
            source = (folder / _FILE).read_text(encoding="utf-8")
        return None if source is None else cls(source, special_tokens_of(settings))

    def __call__(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt of a conversation, up to where the answer begins.

        Raises:
            RequestError: the template refuses the conversation.
        """
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._special_tokens)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            msg = f"the chat template refuses these messages: {error}"
            raise RequestError(msg) from error


def special_tokens_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that `tokenizer_config.json` names, as texts."""
    named = {name: value for name, value in settings.items() if name.endswith("_token")}
    texts = {name: value.get("content") if isinstance(value, Mapping) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def without_template(messages: Sequence[Mapping[str, Any]]) -> str:
    """The prompt for a model that was not taught to converse: what was said, one after the other, to be continued."""
    return "\n".join(str(message["content"]) for message in messages)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter writes for HTML, where < and & are escaped.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
