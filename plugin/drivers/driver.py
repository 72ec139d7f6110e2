"""What every driver is: who has the ops performed that the core admits."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from headrace.core.request import DONE

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.drivers.job import Job

T = TypeVar("T")


class Driver(abc.ABC):
    """Has what the core admits performed. There is one for each kind of backend and mode."""

    is_drained: ClassVar[bool] = False
    """Whether nothing of a read is in flight any more when `run` was left, by an exception too."""
    waits_elsewhere: ClassVar[bool] = False
    """Whether other threads than the consumer's wait for a disk."""

    @abc.abstractmethod
    def launch(self, job: Job) -> None:
        """Submit without waiting."""

    @abc.abstractmethod
    def wait(self, job: Job, timeout_s: float | None = None) -> None:
        """Wait for what `launch` submitted."""

    def run(self, job: Job, timeout_s: float | None = None) -> None:
        """Submit and return when the request is over."""
        job.request.is_awaited = True
        try:
            self._begin(job, timeout_s)
            self.wait(job, timeout_s)
        finally:
            if job.request.state not in DONE:
                self._abandon(job)

    def _begin(self, job: Job, timeout_s: float | None) -> None:  # noqa: ARG002 - who drives here looks at it
        """Submit, on the thread that is about to wait."""
        self.launch(job)

    def _abandon(self, job: Job) -> None:
        """End a request that its consumer left."""
        job.cancel()

    def launch_unpolled(self, job: Job) -> None:
        """Submit what nobody polls, as on an event loop."""
        self.launch(job)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that does not block where reads are driven, and return what it returns."""
        return function(*args)

    def start_for_others(self) -> None:  # noqa: B027 - where each is driven elsewhere there is nothing to start
        """Start what this thread's completions had admitted for consumers that are waiting for the disk."""
