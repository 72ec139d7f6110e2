"""Fork, spawn, and the death of threads: fresh state in a child, and nothing lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lifecycle.processes import run

PROTOCOLS = ("file", "slow", "aslow")


@pytest.fixture(scope="session")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forks") / "data.bin"
    path.write_bytes(np.random.default_rng(9).bytes(300_000))
    return path


def _passes(work: str, protocol: str, content: Path, mode: str) -> None:
    ended = run("forks.py", work, protocol, content, HEADRACE_SCHEDULER=mode)
    assert (ended.status, ended.err) == (0, "")


@pytest.mark.parametrize("work", ["fork_exit", "fork_quick_exit"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_fork_beside_threads_that_read(
    work: str, protocol: str, content: Path, scheduled_mode: str
) -> None:
    _passes(work, protocol, content, scheduled_mode)


AWAITED = [(protocol, mode) for protocol in PROTOCOLS for mode in ("lite", "standard")]


@pytest.mark.parametrize(("protocol", "mode"), [*AWAITED, ("file", "off")])
def test_a_fork_just_after_reads_were_awaited(protocol: str, content: Path, mode: str) -> None:
    _passes("fork_async", protocol, content, mode)


@pytest.mark.parametrize("protocol", ["slow", "aslow"])
def test_a_fork_with_slow_reads_in_flight(protocol: str, content: Path, scheduled_mode: str) -> None:
    _passes("fork_slow", protocol, content, scheduled_mode)


@pytest.mark.parametrize("protocol", ["file", "slow"])
def test_a_child_that_goes_on_in_the_middle_of_a_read(
    protocol: str, content: Path, scheduled_mode: str
) -> None:
    _passes("fork_inside", protocol, content, scheduled_mode)


def test_a_child_that_goes_on_in_the_wait_for_a_lock(content: Path, scheduled_mode: str) -> None:
    _passes("fork_at_a_lock", "slow", content, scheduled_mode)


@pytest.mark.parametrize("protocol", ["slow", "aslow"])
def test_a_file_that_is_read_at_a_fork_is_closed_in_the_child(
    protocol: str, content: Path, scheduled_mode: str
) -> None:
    _passes("fork_close", protocol, content, scheduled_mode)


def test_a_handle_has_the_cache_in_the_child_that_it_was_given(content: Path, scheduled_mode: str) -> None:
    _passes("fork_cached", "slow", content, scheduled_mode)


@pytest.mark.parametrize("work", ["fork_replaced", "fork_removed"])
def test_a_local_file_is_the_one_that_was_opened(
    work: str, tmp_path: Path, content: Path, scheduled_mode: str
) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(content.read_bytes())
    _passes(work, "file", path, scheduled_mode)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickled_filesystem_in_other_processes(protocol: str, content: Path, scheduled_mode: str) -> None:
    _passes("processes", protocol, content, scheduled_mode)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_thread_that_dies_with_reads_submitted(protocol: str, content: Path, scheduled_mode: str) -> None:
    _passes("thread_death", protocol, content, scheduled_mode)


@pytest.mark.parametrize("protocol", ["file", "aslow"])
def test_a_background_thread_that_dies(protocol: str, content: Path, scheduled_mode: str) -> None:
    _passes("loop_death", protocol, content, scheduled_mode)
