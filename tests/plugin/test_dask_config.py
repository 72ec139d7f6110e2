"""Whether Dask's configuration may name headrace, found out without Dask; what it says: `test_settings`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from headrace import dask_config

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def nobody_imported_dask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "dask.config", raising=False)
    for name in list(os.environ):
        if name.startswith("DASK_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(dask_config, "folders", lambda: [tmp_path / "missing", tmp_path])


@pytest.mark.parametrize(
    ("name", "text", "may"),
    [
        ("headrace.yaml", "headrace:\n  retries: 2\n", True),
        ("a.YML", "x: 1\nheadrace: {retries: 2}\n", True),
        ("a.json", '{"headrace": {}}', True),
        ("dask.yaml", "scheduler: threads\n", False),
        ("notes.txt", "headrace", False),
    ],
)
def test_files_that_name_headrace_are_left_to_dask(tmp_path: Path, name: str, text: str, may: bool) -> None:
    (tmp_path / name).write_text(text)
    assert dask_config.may_name_headrace() is may


def test_a_variable_of_dasks_is_left_to_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not dask_config.may_name_headrace()
    monkeypatch.setenv("DASK_CONFIG", "/somewhere")
    assert dask_config.may_name_headrace()


def test_dask_is_asked_where_it_is_there_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask.config", dask_config)
    assert dask_config.may_name_headrace()


@pytest.mark.parametrize("kind", ["a file in the folder's place", "a file that is gone"])
def test_what_cannot_be_looked_into_is_left_to_dask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file = tmp_path / "a.yaml"
    if kind == "a file that is gone":
        file.symlink_to(tmp_path / "missing")
    else:
        file.write_text("")
        monkeypatch.setattr(dask_config, "folders", lambda: [file])
    assert dask_config.may_name_headrace()
