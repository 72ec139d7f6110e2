"""Dask: reads inside a task of the distributed scheduler take that task's priority.

``distributed`` orders tasks by ``(-user priority, generation, order, ...)``. Tasks that run at once on one
worker compete for its storage, so a read takes the user priority of its task (what
``client.submit(..., priority=10)`` or ``dask.annotate(priority=10)`` set; higher is more urgent there, lower
is more urgent here). It is read when a file is opened: Arrow's threads cannot see the task.

The threaded scheduler has no priority at run time; ``headrace.priority`` does reach its tasks.

Loaded by itself, when ``distributed.worker`` was imported.
"""

from __future__ import annotations

import math

from headrace.ambient import MOST_BASE, register


def task_priority() -> int | None:
    """Return the base priority of the running task, or None outside of one."""
    from distributed.worker import get_worker, thread_state  # type: ignore[attr-defined]  # noqa: PLC0415

    key = getattr(thread_state, "key", None)
    if key is None:
        return None
    try:
        task = get_worker().state.tasks.get(key)
    except ValueError:  # no worker in this process any more
        return None
    if task is None or not task.priority:
        return None
    return _base_of(task.priority[0])


def _base_of(first: float) -> int:
    """Return a base priority for what Dask orders by, which may be a fraction, or infinite."""
    return 0 if math.isnan(first) else math.floor(min(max(first, -MOST_BASE), MOST_BASE))


register(task_priority)
