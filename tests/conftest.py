"""What every test gets: no network, the same random examples on every run, and skips for hardware that is not there."""

import os
from importlib import util

import pytest
from hypothesis import settings

# Set before anything imports transformers: a test that reaches for a model hub fails at once instead of waiting.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# derandomize: a run that passed passes again. deadline: this machine may be busy, and time is no test's business.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _host_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache of the run's own, empty at first and shared by its workers: native operators are compiled once."""
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent
    os.environ["BLOCKEXPORT_CACHE"] = str(folder / "host-cache")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
    if item.get_closest_marker("trt") is not None and not any(map(util.find_spec, ("tensorrt", "tensorrt_rtx"))):
        pytest.skip("neither TensorRT nor TensorRT-RTX is installed")
