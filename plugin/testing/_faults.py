"""What goes wrong in an `ObjectServer`, and when: a `Fault` for one request, drawn from `Faults`.

The draw takes the same count of numbers from the generator for each request, whatever the shares are, so
that the n-th request meets the same chances in every run of one seed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, get_args

from headrace.testing._dialect import S3Error

if TYPE_CHECKING:
    from concurrent.futures import Future
    from random import Random

FaultKind = Literal[
    "none",
    "slow_down",
    "too_many_requests",
    "internal_error",
    "expired_token",
    "reset",
    "break_body",
    "truncate",
    "dribble",
    "whole_object",
]

_SAID: dict[FaultKind, tuple[int, str, str]] = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "too_many_requests": (429, "TooManyRequests", "Please reduce your request rate."),
    "internal_error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "expired_token": (400, "ExpiredToken", "The provided token has expired."),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one request.

    Parameters
    ----------
    kind
        ``none``: answered well. ``slow_down``, ``too_many_requests``, ``internal_error``, ``expired_token``:
        503, 429, 500 and 400 with S3's code. ``reset``: the connection is reset before a byte of the
        answer. ``break_body``: reset within the body. ``truncate``: closed within the body, as if it had
        ended. ``dribble``: the body comes at `bytes_per_s`. ``whole_object``: the range is ignored.
        What concerns a body does nothing to an answer without one.
    delay_s
        Seconds before the first byte of the answer; `math.inf`: until the server is closed.
    until
        The answer also waits for this to be done; it is never cancelled.
    retry_after_s
        What ``slow_down`` and ``too_many_requests`` say in Retry-After, whole seconds.
    body_bytes
        Bytes of the body that are sent by ``break_body`` and ``truncate``; None: half of it.
    bytes_per_s
        Pace of ``dribble``.
    """

    kind: FaultKind = "none"
    delay_s: float = 0.0
    until: Future[None] | None = None
    retry_after_s: int | None = None
    body_bytes: int | None = None
    bytes_per_s: float = 64 * 1024

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise ValueError(f"no such kind of fault: {self.kind!r}; there are {get_args(FaultKind)}")

    def raise_if_error(self) -> None:
        """Raise the error that the server answers with, if it does.

        Raises
        ------
        S3Error
            For the kinds that are an answer.
        """
        if self.kind not in _SAID:
            return
        status, code, message = _SAID[self.kind]
        asks_for_less = self.kind in ("slow_down", "too_many_requests")
        headers = {}
        if asks_for_less and self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        raise S3Error(status, code, message, headers)


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to requests at random; the shares of errors together are at most 1.

    Parameters
    ----------
    latency_s, jitter_s
        Seconds before every answer, and up to how many more, evenly spread.
    straggler_share, straggler_s
        Share of requests that wait so much longer.
    slow_down_share, too_many_requests_share, internal_error_share
        Shares answered with 503, 429 and 500.
    retry_after_s
        What the 503 and 429 among them say in Retry-After; None: nothing.
    reset_share, break_body_share, truncate_share
        Shares whose connection is reset before the answer, reset within the body, closed within the body.
    dribble_share, dribble_bytes_per_s
        Share whose body comes slowly, and its pace.
    is_storm
        Every request is answered with 503 until told otherwise, after its latency.
    methods
        The HTTP methods that errors and stragglers concern; latency and storms concern all.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    straggler_share: float = 0.0
    straggler_s: float = 2.0
    slow_down_share: float = 0.0
    too_many_requests_share: float = 0.0
    internal_error_share: float = 0.0
    retry_after_s: int | None = None
    reset_share: float = 0.0
    break_body_share: float = 0.0
    truncate_share: float = 0.0
    dribble_share: float = 0.0
    dribble_bytes_per_s: float = 64 * 1024
    is_storm: bool = False
    methods: frozenset[str] = frozenset({"HEAD", "GET", "PUT", "POST", "DELETE"})

    def __post_init__(self) -> None:
        shares = {each.name: getattr(self, each.name) for each in fields(self) if "_share" in each.name}
        wrong = {name: share for name, share in shares.items() if not 0 <= share <= 1}
        if wrong:
            raise ValueError(f"shares are between 0 and 1: {wrong}")
        if sum(self._shares().values()) > 1 + 1e-9:
            raise ValueError(f"shares of faults are more than 1 together: {self._shares()}")

    def draw(self, method: str, generator: Random) -> Fault:
        """Return what happens to the next request; takes three numbers from `generator`."""
        jitter, straggling, chance = generator.random(), generator.random(), generator.random()
        delay_s = self.latency_s + jitter * self.jitter_s
        if self.is_storm:
            return Fault("slow_down", delay_s, retry_after_s=self.retry_after_s)
        if method not in self.methods:
            return Fault(delay_s=delay_s)
        if straggling < self.straggler_share:
            delay_s += self.straggler_s
        return Fault(
            self._kind(chance),
            delay_s,
            retry_after_s=self.retry_after_s,
            bytes_per_s=self.dribble_bytes_per_s,
        )

    def _kind(self, chance: float) -> FaultKind:
        for kind, share in self._shares().items():
            if chance < share:
                return kind
            chance -= share
        return "none"

    def _shares(self) -> dict[FaultKind, float]:
        return {
            "slow_down": self.slow_down_share,
            "too_many_requests": self.too_many_requests_share,
            "internal_error": self.internal_error_share,
            "reset": self.reset_share,
            "break_body": self.break_body_share,
            "truncate": self.truncate_share,
            "dribble": self.dribble_share,
        }
