"""What the system grants a process."""

from __future__ import annotations

import importlib
from typing import Any


def soft_limit(name: str) -> int | None:
    """Return a soft limit, RLIMIT_NOFILE or the like; None where there is none, or no such thing."""
    try:
        resource: Any = importlib.import_module("resource")
        soft = int(resource.getrlimit(getattr(resource, name))[0])
    except (ImportError, AttributeError, ValueError, OSError):
        return None
    return None if soft == resource.RLIM_INFINITY else soft
