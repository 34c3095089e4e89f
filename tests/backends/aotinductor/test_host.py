from importlib import metadata

import pytest

from blockexport.backends.aotinductor.host import check_host, find_compiler, host_demands, torch_version
from blockexport.errors import BackendUnavailableError


def test_a_host_meets_its_own_demands() -> None:
    check_host(host_demands(), host_demands())


@pytest.mark.parametrize(
    ("name", "value"), [("torch", "1.0"), ("machine", "Plan9 mips"), ("gpu", "sm90"), ("cpu_features", "avx9000")]
)
def test_what_a_host_lacks_is_named(name: str, value: str) -> None:
    with pytest.raises(BackendUnavailableError, match=value):
        check_host(host_demands() | {name: value}, host_demands())


def test_a_better_processor_will_do() -> None:
    check_host(host_demands() | {"cpu_features": ""}, host_demands())


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_name: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(BackendUnavailableError, match=r"blockexport\[build\]"):
        torch_version()


def test_without_a_compiler_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BackendUnavailableError, match="no-such-compiler"):
        find_compiler()
