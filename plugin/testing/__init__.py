"""For tests and demos of code that uses headrace, and of third parties' backends.

* `BackendTests`: the conformance suite that every backend passes; subclass it. Needs pytest.
* `current_permit`: which admitted op the calling code performs, for recording filesystems.
* `ObjectServer`: an object store on the loopback device that fails as it is told to (`Faults`, `Fault`) and
  logs what it was asked (`ServedRequest`). Needs aiohttp, which s3fs brings.
* `ObjectServerProcess`: the same in a process of its own, for measurements beside busy threads.

Names are imported when they are first used, so that none needs what only another one does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.drivers.permit import Permit, current_permit
    from headrace.testing._faults import Fault, Faults
    from headrace.testing._serving import ServedRequest
    from headrace.testing.backend_tests import BackendTests
    from headrace.testing.object_server import ObjectServer
    from headrace.testing.server_process import ObjectServerProcess

__all__ = [
    "BackendTests",
    "Fault",
    "Faults",
    "ObjectServer",
    "ObjectServerProcess",
    "Permit",
    "ServedRequest",
    "current_permit",
]

_HOMES = {
    "BackendTests": "headrace.testing.backend_tests",
    "Fault": "headrace.testing._faults",
    "Faults": "headrace.testing._faults",
    "ObjectServer": "headrace.testing.object_server",
    "ObjectServerProcess": "headrace.testing.server_process",
    "Permit": "headrace.drivers.permit",
    "ServedRequest": "headrace.testing._serving",
    "current_permit": "headrace.drivers.permit",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "BackendTests":
        _show_what_differed()
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def _show_what_differed() -> None:
    """Have pytest rewrite the suite's assertions: they are a third party's test output."""
    import pytest  # noqa: PLC0415 - only this name needs it

    pytest.register_assert_rewrite("headrace.testing.backend_tests", "headrace.testing.perform")
