"""Sync filesystems: who may be in one at a time."""

from __future__ import annotations

import gc
import io
import tarfile
from pathlib import Path

from fsspec.implementations.tar import TarFileSystem

from headrace.backends.fsspec_sync import SyncBackend, instance_lock


def test_equal_filesystems_have_a_lock_each_for_as_long_as_they_are_there(tmp_path: Path) -> None:
    """The second keeps its own when the first is gone: its reads and everything else hold the same one."""
    path = tmp_path / "data.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("empty"), io.BytesIO())
    first, second = (TarFileSystem(str(path), skip_instance_cache=True) for _ in range(2))
    assert first == second
    lock = instance_lock(first)
    backend = SyncBackend(second)
    assert backend.guard() is not lock
    del first
    gc.collect()
    assert instance_lock(second) is backend.guard()
