"""Text to samples: windows for bits per byte, questions with one right answer, sentences for encoders."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from blockexport.core.data import IGNORED_LABEL, Sample
from blockexport.core.model import ModelSpec
from blockexport.datasets.pictures import QuestionReader
from blockexport.errors import BlockExportError, DataError

# Long enough for a model to use its context, short enough that a few windows are a sample and not an anecdote.
WINDOW_TOKENS = 256
# What is left of a text behind its last whole window; a shorter one is all beginning.
MIN_WINDOW_TOKENS = 16
_MAX_SENTENCE_TOKENS = 128


def open_tokenizer(folder: Path | None) -> Tokenizer:
    """The tokenizer of a checkpoint.

    Raises:
        DataError: the checkpoint has none, or a damaged one.
    """
    if folder is None or not (folder / "tokenizer.json").is_file():
        msg = "this model has no tokenizer.json, which text data needs; add it to the model folder"
        raise DataError(msg)
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        # The library raises nothing more precise.
        msg = f"{folder / 'tokenizer.json'} is no tokenizer ({error}); fetch the checkpoint again"
        raise DataError(msg) from error
    # Shipped tokenizers often pad to a fixed length; padding is the batch's business.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def window_samples(texts: Iterable[str], tokenizer: Tokenizer, window_tokens: int, group: str) -> Iterator[Sample]:
    """Cut texts into windows of `window_tokens`; the first token of a window is given, the others are predicted."""
    for text in texts:
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        for start in range(0, len(tokens), window_tokens):
            window = np.array(tokens[start : start + window_tokens], np.int64)
            if len(window) < min(window_tokens, MIN_WINDOW_TOKENS):
                continue
            labels = window.copy()
            labels[0] = IGNORED_LABEL
            num_bytes = len(tokenizer.decode(window[1:].tolist(), skip_special_tokens=False).encode())
            yield Sample({"input_ids": window}, labels, "bits_per_byte", group, num_bytes)


def answer_sample(prompt: str, answer: str, group: str, tokenizer: Tokenizer) -> Sample:
    """A question whose answer, to its last token, must be what the model would say."""
    question = tokenizer.encode(prompt, add_special_tokens=False).ids
    reply = tokenizer.encode(answer, add_special_tokens=False).ids
    if not question or not reply:
        msg = f"prompt {prompt!r} with answer {answer!r} has an empty side; give both"
        raise DataError(msg)
    labels = np.array([IGNORED_LABEL] * len(question) + reply, np.int64)
    return Sample({"input_ids": np.array(question + reply, np.int64)}, labels, "exact_match", group)


def sentence_sample(text: str, tokenizer: Tokenizer, max_tokens: int) -> Sample:
    """A text for an encoder, judged by how close its embedding stays to the full model's."""
    tokens = tokenizer.encode(text).ids[:max_tokens]
    return Sample({"input_ids": np.array(tokens, np.int64)}, None, "cosine", "sentences")


def read_text(path: Path, spec: ModelSpec, tokenizer_dir: Path | None) -> tuple[Sample, ...]:
    """A text file, or every text file of a folder: windows for a decoder, lines for an encoder."""
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    return _text_samples([_read(file) for file in files], spec, open_tokenizer(tokenizer_dir))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        msg = f"{path} is not UTF-8 text ({error.reason}); convert it"
        raise DataError(msg) from error


def _text_samples(texts: list[str], spec: ModelSpec, tokenizer: Tokenizer) -> tuple[Sample, ...]:
    if spec.kind == "vision":
        msg = f"{spec.name} takes pictures, not text; give an .npz file"
        raise DataError(msg)
    if spec.kind == "decoder":
        window = min(WINDOW_TOKENS, spec.context_tokens or WINDOW_TOKENS)
        return tuple(window_samples(texts, tokenizer, window, "text"))
    limit = min(_MAX_SENTENCE_TOKENS, spec.context_tokens or _MAX_SENTENCE_TOKENS)
    lines = (line.strip() for text in texts for line in text.splitlines())
    return tuple(sentence_sample(line, tokenizer, limit) for line in lines if line)


def read_jsonl(path: Path, spec: ModelSpec, tokenizer_dir: Path | None) -> tuple[Sample, ...]:
    """One JSON object a line: `text`, or `prompt` and `answer`, optionally `task` and `image`."""
    tokenizer = open_tokenizer(tokenizer_dir)
    questions = QuestionReader(spec, tokenizer_dir)
    samples: list[Sample] = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if "image" in entry:
                samples.append(questions.read(entry, path.parent))
            elif "text" in entry:
                samples += _text_samples([entry["text"]], spec, tokenizer)
            else:
                samples.append(answer_sample(entry["prompt"], entry["answer"], entry.get("task", "answers"), tokenizer))
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, BlockExportError):
                raise
            msg = f"{path} line {number} needs `text`, or `prompt` and `answer` ({error!r}); correct that line"
            raise DataError(msg) from error
    return tuple(samples)
