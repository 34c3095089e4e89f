"""Draws what a ladder answers to questions about pictures, level by level: the README's picture of digits-molmo."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from environment import describe

from blockexport.core.jsonio import dump_json, write_atomically
from blockexport.core.questions import PictureQuestion, judge
from blockexport.models.demos.digits_molmo.data import questions
from blockexport.processing.processor import collate
from blockexport.runtime import Runtime, load
from blockexport.runtime.processor import load_processor

TASKS = ("digit", "parity", "larger", "sum", "count", "read")
RIGHT, WRONG = "#1a7f37", "#b3261e"


def replies(runtime: Runtime, question: PictureQuestion, levels: Sequence[str]) -> list[str]:
    """The answer of each level, most likely token after most likely token."""
    processor = load_processor(runtime.bundle)
    inputs = collate([processor(question.question, [question.picture])])
    tokens = inputs.pop("input_ids")[0]
    found = [runtime.generate(tokens, 8, level=level, **inputs).tokens for level in levels]
    return [runtime.tokenizer.decode(answer).strip() for answer in found]


def draw(asked: Sequence[PictureQuestion], answers: Sequence[Sequence[str]], levels: Sequence[str], out: Path) -> None:
    """One row of pictures, their questions above and the answers of each level below."""
    figure, axes = plt.subplots(1, len(asked), figsize=(2.1 * len(asked), 2.4), squeeze=False)
    for axis, question, given in zip(axes[0], asked, answers, strict=True):
        axis.imshow(question.picture)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_anchor("S")
        axis.set_title(_wrapped(question.question), fontsize=9)
        for line, (level, reply) in enumerate(zip(levels, given, strict=True)):
            color = RIGHT if judge(question, reply) == 1.0 else WRONG
            mark = "\N{CHECK MARK}" if color == RIGHT else "\N{BALLOT X}"
            text = f"{level.removeprefix('d')} blocks: {reply} {mark}"
            axis.annotate(
                text,
                (0.5, 0),
                xytext=(0, -14 - 14 * line),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=color,
            )
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.26, top=0.9, wspace=0.08)
    figure.savefig(out, dpi=110)


def _wrapped(text: str, width: int = 20) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def main() -> None:
    """Ask every kind of question once at every level, and draw the answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the picture and its figures")
    parser.add_argument("--seed", type=int, default=4, help="of the pictures")
    args = parser.parse_args()
    runtime = load(args.bundle)
    levels = [level.name for level in runtime.levels]
    asked = list(questions("test", TASKS, 1, args.seed))
    answers = [replies(runtime, question, levels) for question in asked]
    args.out.mkdir(parents=True, exist_ok=True)
    draw(asked, answers, levels, args.out / "picture_answers.png")
    quality = {
        level.name: {name: value.value for name, value in level.quality.metrics.items()}
        for level in runtime.levels
        if level.quality is not None
    }
    result = {"seed": args.seed, "quality": quality, "environment": describe()}
    write_atomically(args.out / "picture_answers.json", dump_json(result) + "\n")


if __name__ == "__main__":
    main()
