"""Dask's configuration: what it says of headrace, without Dask where it says nothing.

To import ``dask.config`` is to import Dask: 0.15 to 0.2 s, once a process, of the 0.5 s after which a program
that only reads could have read. So where nobody has imported it, it is imported only if it may have something
to say of headrace: a variable of Dask's is set, or one of its files names headrace, or cannot be looked into.
Then a variable or file counts in every process, whether or not it uses Dask.

Where Dask looks for files is Dask's to say, so a test compares `folders` with it.
"""

from __future__ import annotations

import importlib
import os
import site
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

_SUFFIXES = (".json", ".yaml", ".yml")


def read_dask_config() -> tuple[Mapping[Any, Any], str]:
    """Return Dask's global configuration, and what is wrong with it, if anything is."""
    try:
        return cast("Mapping[Any, Any]", importlib.import_module("dask.config").config), ""
    except ModuleNotFoundError:
        return {}, ""
    except Exception as error:  # noqa: BLE001 - whatever a malformed file makes Dask raise
        return {}, f"dask.config cannot be read, so headrace.* in it is ignored: {error}"


def may_name_headrace() -> bool:
    """Whether Dask is there already, or its configuration may say something of headrace."""
    if "dask.config" in sys.modules or any(name.startswith("DASK_") for name in os.environ):
        return True
    return any(map(_may_name_headrace, folders()))


def folders() -> list[Path]:
    """Return where Dask looks for files while no variable of its own says otherwise."""
    prefixes = dict.fromkeys([sys.prefix, *site.PREFIXES])
    return [
        Path("/etc/dask"),
        *(Path(prefix, "etc", "dask") for prefix in prefixes),
        Path(os.path.expanduser("~"), ".config", "dask"),  # noqa: PTH111 - as it is where there is no home
    ]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES]


def _may_name_headrace(folder: Path) -> bool:
    try:
        if not folder.exists():
            return False
        return any(b"headrace" in path.read_bytes() for path in _files(folder))
    except OSError:
        return True  # Dask knows what to make of it
