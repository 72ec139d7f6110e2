"""What the system grants a process."""

from __future__ import annotations

import os

from headrace.threads import raise_if_of_a_handler


def memory_bytes() -> int | None:
    """Return how much memory the machine has; None where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no sysconf on Windows
        return None


def soft_limit(name: str) -> int | None:
    """Return a soft limit, RLIMIT_NOFILE or the like; None where there is none, or no such thing."""
    try:
        import resource  # noqa: PLC0415 - Windows has none

        soft = int(resource.getrlimit(getattr(resource, name))[0])
    except (ImportError, AttributeError, ValueError, OSError) as error:
        raise_if_of_a_handler(error)
        return None
    return None if soft == resource.RLIM_INFINITY else soft
