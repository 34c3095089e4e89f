"""The exact-match half of the `demo:code-lm` data: three generated tasks of rising difficulty.

| task   | difficulty | an item                                  |
|--------|------------|------------------------------------------|
| copy   | simple     | `# copy: k v a q -> k v a q`             |
| lookup | medium     | `# lookup: k=4 v=7 a=1 q=9; a -> 1`      |
| add    | complex    | `# add: 37 + 48 -> 85`                   |

Held-out items are chosen by the hash of what makes an item new (for `add` the unordered pair of operands), so
no training run with any seed can see one.
"""

import hashlib
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass

HELD_OUT_PER_CENT = 10
ANSWER_END = "\n"


@dataclass(frozen=True, slots=True)
class TaskItem:
    """One question with its one right answer; `answer` ends where the model must emit `ANSWER_END`."""

    task: str
    prompt: str
    answer: str


def _copy(rng: random.Random) -> tuple[str, TaskItem]:
    letters = " ".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 6)))
    return letters, TaskItem("copy", f"# copy: {letters} ->", f" {letters}")


def _lookup(rng: random.Random) -> tuple[str, TaskItem]:
    keys = rng.sample(string.ascii_lowercase, k=rng.randint(3, 5))
    pairs = [(key, str(rng.randint(0, 9))) for key in keys]
    asked, answer = rng.choice(pairs)
    question = " ".join(f"{key}={value}" for key, value in pairs) + f"; {asked}"
    return question, TaskItem("lookup", f"# lookup: {question} ->", f" {answer}")


def _add(rng: random.Random) -> tuple[str, TaskItem]:
    left, right = rng.randint(0, 99), rng.randint(0, 99)
    identity = f"{min(left, right)}+{max(left, right)}"
    return identity, TaskItem("add", f"# add: {left:02d} + {right:02d} ->", f" {left + right:03d}")


_GENERATORS: dict[str, Callable[[random.Random], tuple[str, TaskItem]]] = {
    "copy": _copy,
    "lookup": _lookup,
    "add": _add,
}
TASKS = tuple(_GENERATORS)
DIFFICULTY = {"copy": "simple", "lookup": "medium", "add": "complex"}


def _is_held_out(task: str, identity: str) -> bool:
    digest = hashlib.sha256(f"{task}:{identity}".encode()).digest()
    return digest[0] * 100 // 256 < HELD_OUT_PER_CENT


def generate(task: str, *, held_out: bool, seed: int) -> Iterator[TaskItem]:
    """Yield items of one task without end, all of one split, the same for the same seed.

    Raises:
        ValueError: `task` is not one of `TASKS`.
    """
    if task not in _GENERATORS:
        msg = f"unknown task {task!r}; allowed: {', '.join(TASKS)}"
        raise ValueError(msg)
    rng = random.Random(f"{task}:{held_out}:{seed}")
    while True:
        identity, item = _GENERATORS[task](rng)
        if _is_held_out(task, identity) == held_out:
            yield item
