from pathlib import Path

import pytest

from blockexport.core import host_memory
from blockexport.core.host_memory import available_memory_bytes


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(host_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "_GROUP", tmp_path)
    return tmp_path


def write_group(folder: Path, limit: str) -> None:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text("700\n")
    (folder / "memory.stat").write_text("anon 100\nfile 600\n")


def test_a_system_that_does_not_say(host: Path) -> None:
    assert available_memory_bytes() is None


def test_the_host(host: Path) -> None:
    (host / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:   3 kB\n")
    assert available_memory_bytes() == 3072


def test_the_container_if_it_is_smaller_without_pages_of_files(host: Path) -> None:
    (host / "meminfo").write_text("MemAvailable:   3 kB\n")
    write_group(host, "1000")
    assert available_memory_bytes() == 900
    write_group(host, "max")
    assert available_memory_bytes() == 3072


def test_this_host_has_some() -> None:
    assert (available_memory_bytes() or 1) > 0
