"""The parity gate: an engine of a level against the recorded answers of the eager masked reference.

Needs neither torch nor the checkpoint, so a serving host can run it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from blockexport.bundle.manifest import ParityRecord
from blockexport.core.engine import BoundDecoder, DecoderRunner, SinglePassRunner, StepInputs, empty_rows
from blockexport.core.model import VisionSpec
from blockexport.core.parity import ParityCase
from blockexport.core.pictures import ImageTokens, Pictures, chunk_end
from blockexport.core.positions import PositionShifts
from blockexport.errors import ParityError

# The cache is deliberately larger than the longest row: an engine that reads past a row's end then shows.
_SPARE_TOKENS = 5


def check_decoder(
    runner: DecoderRunner,
    layout: Mapping[int, tuple[int, int]],
    cases: Sequence[ParityCase],
    vision: SinglePassRunner | None = None,
    spec: VisionSpec | None = None,
) -> tuple[ParityRecord, ...]:
    """Run every recorded case through a decoder level.

    Args:
        runner: the level.
        layout: per kept block, (kv_heads, head_dim).
        cases: the reference's answers.
        vision: the vision side at full depth, which gives the image tokens of cases with pictures.
        spec: of the vision side, for a model that reads pictures.
    """
    records = []
    for case in cases:
        pictures = Pictures.of_batch(case.inputs, None if spec is None else spec.grid)
        parts = _parts(case, () if spec is None else spec.mutual_tokens)
        logits = _run_decoder(runner, layout, case, parts, pictures, _image_tokens(case, pictures, vision))
        records.append(_record(case, logits[:, :, case.columns], logits))
    return tuple(records)


def check_single_pass(runner: SinglePassRunner, cases: Sequence[ParityCase]) -> tuple[ParityRecord, ...]:
    """Run every recorded case through an encoder or vision level."""
    records = []
    for case in cases:
        output = runner.forward(case.inputs)
        if "attention_mask" in case.inputs and output.ndim == 3:
            output = output * case.inputs["attention_mask"][:, :, None].astype(np.float32)
        records.append(_record(case, output, None))
    return tuple(records)


def _run_decoder(
    runner: DecoderRunner,
    layout: Mapping[int, tuple[int, int]],
    case: ParityCase,
    parts: tuple[tuple[int, int], ...],
    pictures: Pictures | None,
    image_tokens: ImageTokens | None,
) -> NDArray[np.float32]:
    """Logits (batch, 1 + steps, vocab), or of the last token alone for a case in chunks."""
    prompt = np.asarray(case.inputs["prompt"], np.int64)
    lengths = np.asarray(case.inputs["lengths"], np.int64)
    continuation = np.asarray(case.inputs["continuation"], np.int64)
    capacity = prompt.shape[1] + continuation.shape[1] + _SPARE_TOKENS
    rows = empty_rows(layout, len(prompt), capacity, np.dtype(np.float32))
    # Whatever an engine reads where nothing was written must not go unnoticed.
    for pair in rows.values():
        for array in pair:
            array.fill(1e3)
    bound = runner.bind(rows)
    shifts = None if pictures is None else pictures.shifts

    def following(tokens: NDArray[np.int64], step: int) -> NDArray[np.float32]:
        behind = None if shifts is None else shifts.behind_tokens(tokens.shape[1])
        return bound.step(StepInputs.following(tokens, lengths + step, position_shifts=behind))

    if case.check.endswith("chunked"):
        _run_in_chunks(bound, prompt, parts, image_tokens, shifts)
        return following(continuation, 0)
    collected = [bound.step(StepInputs.prompt(prompt, lengths, image_tokens=image_tokens, shifts=shifts))]
    collected += [following(continuation[:, step : step + 1], step) for step in range(continuation.shape[1])]
    return np.concatenate(collected, axis=1)


def _image_tokens(case: ParityCase, pictures: Pictures | None, vision: SinglePassRunner | None) -> ImageTokens | None:
    if pictures is None:
        return None
    if vision is None:
        msg = f"check {case.check} has pictures, but no engine reads them; rebuild the bundle"
        raise ParityError(msg)
    return pictures.image_tokens(vision.forward(pictures.engine_inputs))


def _parts(case: ParityCase, mutual_tokens: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Chunks of a prompt; one with pictures is parted in the middle of one, or behind what has to come together."""
    (prompt, *_), places = case.inputs["prompt"], case.inputs.get("image_input_idx")
    parted = len(prompt)
    if places is not None:
        parted = chunk_end(prompt, int(np.median(places[0][places[0] >= 0])), mutual_tokens)
    return tuple((begin, end) for begin, end in ((0, parted), (parted, len(prompt))) if begin < end)


def _run_in_chunks(
    bound: BoundDecoder,
    prompt: NDArray[np.int64],
    parts: tuple[tuple[int, int], ...],
    image_tokens: ImageTokens | None,
    shifts: PositionShifts | None,
) -> None:
    for begin, end in parts:
        joining = None if image_tokens is None else image_tokens.within(0, begin, end)
        moved = None if shifts is None else shifts.columns(begin, end)
        bound.step(StepInputs.following(prompt[:, begin:end], np.array([begin]), joining, moved))


def _record(case: ParityCase, output: NDArray[np.float32], logits: NDArray[np.float32] | None) -> ParityRecord:
    difference = np.abs(output - case.expected)
    error = float(difference.max()) if np.isfinite(difference).all() else float("inf")
    tokens_equal = None if logits is None else _same_tokens(logits, case)
    return ParityRecord(
        check=case.check,
        max_abs_err=error,
        tolerance=case.tolerance,
        tokens_equal=tokens_equal,
        passed=error <= case.tolerance and tokens_equal is not False,
    )


def _same_tokens(logits: NDArray[np.float32], case: ParityCase) -> bool:
    """Whether greedy decoding picks the reference's tokens, where its choice is not a tie within the tolerance."""
    ours = logits.argmax(-1)
    picked = np.take_along_axis(logits, ours[..., None], -1)[..., 0]
    wanted = np.take_along_axis(logits, case.argmax[..., None], -1)[..., 0]
    return bool(((ours == case.argmax) | (picked - wanted <= 2 * case.tolerance)).all())
