"""A data argument to a dataset: the name of a demo, or a file the user has."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from blockexport.core.data import Dataset, Sample, check_tokens
from blockexport.core.model import ModelSpec
from blockexport.datasets import demos, images, text
from blockexport.errors import DataError

Split = Literal["selection", "test"]
"""`selection` data chooses blocks, `test` data states quality; the demos keep them apart."""


def load_dataset(
    source: str | Path, spec: ModelSpec, tokenizer_dir: Path | None, *, split: Split = "selection"
) -> Dataset:
    """Read a dataset in the form that a model takes.

    Args:
        source: `demo:code-lm`, `demo:digits-vit` or `demo:digits-molmo`, or a file: `.txt` or `.py` (text, or a folder
            of such files), `.jsonl` (one object a line: `text`, or `prompt` and `answer`, optionally `task`, and with
            `image` a question about a picture, optionally with `choices`), `.npz` (`pixel_values` and `labels`).
        spec: the model the data is for.
        tokenizer_dir: folder with `tokenizer.json`, needed for text.
        split: which part of a demo's data; files have one part only.

    Raises:
        DataError: there is no such data, it is empty, or the model cannot take it.
    """
    name = str(source)
    if name.startswith("demo:"):
        samples = demos.load(name, spec, tokenizer_dir, split)
    else:
        samples = _reader(Path(source))(Path(source), spec, tokenizer_dir)
    if not samples:
        msg = f"{name} holds no sample; give more (text for a decoder: {text.MIN_WINDOW_TOKENS} tokens at least)"
        raise DataError(msg)
    for sample in samples:
        if "input_ids" in sample.inputs:
            check_tokens(sample.inputs["input_ids"], spec)
    return Dataset(name if name.startswith("demo:") else Path(source).name, samples, spec.pad_token)


def _reader(path: Path) -> Callable[[Path, ModelSpec, Path | None], tuple[Sample, ...]]:
    if not path.exists():
        msg = f"no data at {path}; give an existing file, or one of {', '.join(demos.NAMES)}"
        raise DataError(msg)
    readers = {".txt": text.read_text, ".py": text.read_text, ".jsonl": text.read_jsonl, ".npz": images.read_npz}
    suffix = ".txt" if path.is_dir() else path.suffix
    if suffix not in readers:
        msg = f"{path} is of a kind that cannot be read; give one of {', '.join(sorted(readers))} or a folder of text"
        raise DataError(msg)
    return readers[suffix]
