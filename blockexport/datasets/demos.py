"""The demo models' own data, selection and test parts apart."""

import itertools
from pathlib import Path

from tokenizers import Tokenizer

from blockexport.core.data import Sample
from blockexport.core.model import ModelSpec
from blockexport.datasets import text
from blockexport.datasets.images import image_samples
from blockexport.datasets.pictures import QuestionReader
from blockexport.errors import DataError
from blockexport.models.demos.code_lm import corpus, tasks

NAMES = ("demo:code-lm", "demo:digits-molmo", "demo:digits-vit")

# Per split: text windows, items of each task, and the seed of the items. Seed 1 is the card's.
_CODE_LM_SIZES = {"selection": (24, 32, 2), "test": (64, 150, 3)}
# Per split: questions of each task, and their seed. Seed 1 is the card's.
_DIGITS_MOLMO_SIZES = {"selection": (40, 2), "test": (100, 3)}


def load(name: str, spec: ModelSpec, tokenizer_dir: Path | None, split: str) -> tuple[Sample, ...]:
    """Samples of a demo's data.

    Raises:
        DataError: there is no demo of that name, or the model cannot take its data.
    """
    if name == "demo:code-lm" and spec.kind == "decoder":
        return _code_lm(text.open_tokenizer(tokenizer_dir), split, min(text.WINDOW_TOKENS, spec.context_tokens))
    if name == "demo:digits-vit" and spec.image_shape == (1, 8, 8):
        return _digits(split)
    if name == "demo:digits-molmo" and spec.vision is not None:
        return _digits_molmo(spec, tokenizer_dir, split)
    msg = f"data {name!r} does not fit {spec.name} ({spec.kind}); demo data are {', '.join(NAMES)}, each for its model"
    raise DataError(msg)


def _code_lm(tokenizer: Tokenizer, split: str, window_tokens: int) -> tuple[Sample, ...]:
    num_windows, num_items, seed = _CODE_LM_SIZES[split]
    # Held-out modules alternate between the two splits, so that neither sees the other's files.
    texts = corpus.read_split(held_out=True)[split == "test" :: 2]
    windows = list(text.window_samples(texts, tokenizer, window_tokens, "code"))
    # Evenly spread over the modules: the first windows are mostly licences and imports.
    step = max(1, len(windows) // num_windows)
    samples = windows[::step][:num_windows]
    for task in tasks.TASKS:
        for item in itertools.islice(tasks.generate(task, held_out=True, seed=seed), num_items):
            samples.append(text.answer_sample(item.prompt, item.answer + tasks.ANSWER_END, task, tokenizer))
    return tuple(samples)


def _digits(split: str) -> tuple[Sample, ...]:
    try:
        from blockexport.models.demos.digits_vit import data  # noqa: PLC0415  (scikit-learn is not always installed)
    except ImportError as error:
        raise _missing_digits(error) from error
    return image_samples(*data.read_split("test" if split == "test" else "selection"))


def _digits_molmo(spec: ModelSpec, tokenizer_dir: Path | None, split: str) -> tuple[Sample, ...]:
    try:
        from blockexport.models.demos.digits_molmo import data  # noqa: PLC0415  (scikit-learn is not always installed)
    except ImportError as error:
        raise _missing_digits(error) from error
    num_questions, seed = _DIGITS_MOLMO_SIZES[split]
    reader = QuestionReader(spec, tokenizer_dir)
    asked = data.questions("test" if split == "test" else "selection", tuple(data.TASKS), num_questions, seed)
    return tuple(reader.sample(question) for question in asked)


def _missing_digits(error: ImportError) -> DataError:
    msg = f"the digits come with scikit-learn, and pictures need Pillow ({error}); install blockexport[build]"
    return DataError(msg)
