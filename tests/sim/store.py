"""A simulated object store behind the real scheduler: latency, a knee, refusals, storms, stragglers.

Discrete-event and deterministic, as `devices`. One scheduler with a window of requests and the retries of a
store performs a scan of single-op grants; the loop below does what the async driver does.
"""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field

import numpy as np

from headrace.core.hub import Hub
from headrace.core.request import Grant, Request
from headrace.core.retry import Retries
from headrace.core.room import Limits
from headrace.core.window import Window
from headrace.types import Verdict

REFUSED = Verdict(is_retryable=True, is_throttled=True)
BROKEN = Verdict(is_retryable=True)


@dataclass
class Store:
    """Requests of 20 ms, `servers` at a time; what comes on top waits, or is refused.

    Attributes
    ----------
    servers
        Served at once.
    refuses
        Whether what comes on top is refused, rather than made to wait.
    broken_share
        Of requests that fail, whatever the load.
    broken
        How those fail.
    storms
        Times between which every request is refused.
    """

    servers: int = 100
    refuses: bool = False
    broken_share: float = 0.0
    broken: Verdict = REFUSED
    storms: tuple[tuple[float, float], ...] = ()
    latency_s: float = 20e-3
    noise: float = 0.2
    seed: int = 0
    sent: int = 0
    _free_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._free_s = [0.0] * self.servers

    def submit(self, now: float) -> tuple[float, Verdict | None]:
        """Return when the answer is there, and what it is worth: None for the bytes."""
        self.sent += 1
        factor = self._rng.lognormvariate(-(self.noise**2) / 2, self.noise)
        if any(begin <= now < end for begin, end in self.storms):
            return now + 5e-3 * factor, REFUSED
        if self._rng.random() < self.broken_share:
            return now + 5e-3 * factor, self.broken
        if self.refuses and self._free_s[0] > now:
            return now + 5e-3 * factor, REFUSED
        done_s = max(now, heapq.heappop(self._free_s)) + self.latency_s * factor
        heapq.heappush(self._free_s, done_s)
        return done_s, None


@dataclass
class Played:
    """What happened: completions (time, limit at the time), ops that failed, requests sent."""

    done: list[tuple[float, int]] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)
    sent: int = 0
    retries: Retries = field(default_factory=Retries)

    def rate_between(self, start_s: float, end_s: float) -> float:
        """Return ops a second between two times."""
        return sum(start_s <= now < end_s for now, _ in self.done) / (end_s - start_s)

    def limits_between(self, start_s: float, end_s: float) -> list[int]:
        """Return the limits at each completion between two times."""
        return [limit for now, limit in self.done if start_s <= now < end_s]


class _Loop:
    """One scan of a store."""

    def __init__(self, store: Store, ops: int, initial: int, most: int) -> None:
        self.store, self.played = store, Played()
        self.window = Window(initial=initial, least=1, most=most)
        self.hub = Hub()
        self.scheduler = self.hub.scheduler(
            "store",
            Limits(window=self.window, max_in_flight_ops=most, max_grant_ops=1, counts_ops=True),
            retries=self.played.retries,
        )
        self.request = Request(np.ones(ops, np.int64), result_bytes=0)
        self.rng, self.ties = random.Random(1), itertools.count()
        # at, tie, kind, grant, attempt, what the answer is worth
        self.events: list[tuple[float, int, str, Grant, int, Verdict | None]] = []

    def run(self) -> Played:
        self.scheduler.submit(self.request, 0.0)
        self._settle(0.0)
        while self.events:
            now, _, kind, grant, attempt, verdict = heapq.heappop(self.events)
            getattr(self, f"_{kind}")(now, grant, attempt, verdict)
            self._settle(now)
        self.hub.validate()
        self.played.sent = self.store.sent
        return self.played

    def _settle(self, now: float) -> None:
        self.hub.settle(now)
        while self.request.inbox:
            self._send(now, self.request.inbox.pop(0), 1, None)

    def _push(self, at: float, kind: str, grant: Grant, attempt: int, verdict: Verdict | None) -> None:
        heapq.heappush(self.events, (at, next(self.ties), kind, grant, attempt, verdict))

    def _send(self, now: float, grant: Grant, attempt: int, _verdict: Verdict | None) -> None:
        done_s, verdict = self.store.submit(now)
        self._push(done_s, "fail" if verdict else "succeed", grant, attempt, verdict)

    def _succeed(self, now: float, grant: Grant, _attempt: int, _verdict: None) -> None:
        self.scheduler.retries.note_success(1)
        self.scheduler.complete(grant, 1, 1, now)
        self.played.done.append((now, self.window.limit))

    def _fail(self, now: float, grant: Grant, attempt: int, verdict: Verdict) -> None:
        if verdict.is_throttled:
            self.scheduler.room.note_throttled(now)
        delay_s = self.scheduler.retries.next_delay(attempt, verdict, self.rng.random())
        if delay_s is not None:
            self._push(now + delay_s, "send", grant, attempt + 1, None)
            return
        self.played.failed.append(now)
        self.scheduler.complete(grant, 1, 1, now, is_failed=True)


def play(store: Store, ops: int, *, initial: int = 64, most: int = 256) -> Played:
    """Read `ops` ranges from `store`."""
    return _Loop(store, ops, initial, most).run()
