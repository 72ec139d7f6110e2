"""headrace: datasets read from Python through one priority I/O scheduler.

>>> import headrace
>>> fs = headrace.HeadraceFileSystem(target_protocol="memory")

See `HeadraceFileSystem`, and docs/architecture.md for how it works.
"""

from __future__ import annotations

from headrace.ambient import priority
from headrace.batch import RangeBatch
from headrace.errors import (
    BackendError,
    HeadraceError,
    NoRangesError,
    ObjectChangedError,
    ReadCancelledError,
    ReadTimeoutError,
    SchedulerClosedError,
    ShortReadError,
    UnsizedFileError,
)
from headrace.file import HeadraceFile
from headrace.filesystem import HeadraceFileSystem, wrap
from headrace.read import Read
from headrace.settings import HeadraceWarning, Settings, SettingsError
from headrace.settings import reload_settings as reload
from headrace.stats import Stats, stats
from headrace.trace import Trace, trace

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "HeadraceError",
    "HeadraceFile",
    "HeadraceFileSystem",
    "HeadraceWarning",
    "NoRangesError",
    "ObjectChangedError",
    "RangeBatch",
    "Read",
    "ReadCancelledError",
    "ReadTimeoutError",
    "SchedulerClosedError",
    "Settings",
    "SettingsError",
    "ShortReadError",
    "Stats",
    "Trace",
    "UnsizedFileError",
    "__version__",
    "priority",
    "reload",
    "stats",
    "trace",
    "wrap",
]
