"""Kernels run in a process of their own whose Triton interprets: the variable that says so is a whole process's."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

Interpreted = Callable[..., Any]


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Interpreted]:
    """Calls a function of an importable module in the process: interpreted(function, *arguments).

    Where it does not interpret, kernels refuse tensors of a CPU, so no check can pass there unseen.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(os.getpid).result()
        yield lambda function, *args: pool.submit(function, *args).result()
