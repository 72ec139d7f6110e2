"""A simulated link behind the real scheduler: ops in flight share its rate, and each has only so much time.

Discrete-event and deterministic, as `store`. Whose time is over begins again, from nothing or from what came.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from headrace.core.hub import Hub
from headrace.core.link import Link
from headrace.core.request import Grant, Request
from headrace.core.retry import Attempts, Retries
from headrace.core.room import Limits
from headrace.core.window import Window
from headrace.types import Verdict

LATE = Verdict(is_retryable=True, is_throttled=True, is_late=True)


@dataclass
class _Flow:
    """One op on its way."""

    grant: Grant
    left: float
    over_s: float
    attempts: Attempts
    begins_s: float = 0.0


@dataclass
class Played:
    """What came: when the ops were done, how many attempts ran out of time, how many ops failed."""

    done_s: list[float] = field(default_factory=list)
    most_in_flight: int = 0
    late: int = 0
    failed: int = 0


@dataclass
class SharedLink:
    """A link of some rate.

    Attributes
    ----------
    bytes_per_s, latency_s
        Shared evenly by all that is in flight; an op begins to come after the latency.
    try_timeout_s
        What an attempt has.
    keeps
        Whether an attempt goes on where the one before it ended.
    link
        The scheduler's; None for none.
    """

    bytes_per_s: float
    latency_s: float = 20e-3
    try_timeout_s: float = 30.0
    keeps: bool = False
    op_bytes: int = 8 << 20
    window_ops: int = 64
    link: Link | None = None

    def play(self, ops: int) -> Played:
        """Read so many ops."""
        played, flows, now = Played(), list[_Flow](), 0.0
        hub, retries, rng = Hub(), Retries(), random.Random(1)
        scheduler = hub.scheduler(
            "store",
            Limits(
                window=Window(initial=self.window_ops, least=self.window_ops // 2, most=2 * self.window_ops),
                max_in_flight_ops=2 * self.window_ops,
                max_grant_ops=1,
                counts_ops=True,
                link=self.link,
            ),
            retries=retries,
        )
        request = Request(np.full(ops, self.op_bytes), result_bytes=0)
        scheduler.submit(request, now)
        while True:
            hub.settle(now)
            while request.inbox:
                flows.append(self._begin(_Flow(request.inbox.pop(0), self.op_bytes, 0, Attempts()), now))
            played.most_in_flight = max(played.most_in_flight, scheduler.room.in_flight_ops)
            if not flows:
                hub.validate()
                return played
            now = self._advance(flows, now)
            for flow in list(flows):
                if flow.left < 1:
                    retries.note_success(1)
                    scheduler.complete(flow.grant, 1, self.op_bytes, now)
                    played.done_s.append(now)
                    flows.remove(flow)
                elif now >= flow.over_s:
                    played.late += 1
                    kept = int(self.op_bytes - flow.left) if self.keeps else 0
                    flow.attempts.note_kept(0, kept)
                    scheduler.room.note_throttled(now, is_late=True)
                    delay_s = retries.next_delay(flow.attempts.in_vain, LATE, rng.random())
                    if delay_s is None:
                        played.failed += 1
                        scheduler.complete(flow.grant, 1, self.op_bytes, now, is_failed=True)
                        flows.remove(flow)
                    else:
                        flow.left = self.op_bytes - kept
                        self._begin(flow, now + delay_s)

    def _begin(self, flow: _Flow, now: float) -> _Flow:
        flow.attempts.begin()
        flow.begins_s, flow.over_s = now + self.latency_s, now + self.try_timeout_s
        return flow

    def _advance(self, flows: list[_Flow], now: float) -> float:
        """Let time pass until something happens to one of them."""
        coming = [flow for flow in flows if flow.begins_s <= now]
        rate = self.bytes_per_s / max(len(coming), 1)
        then = min(flow.over_s for flow in flows)
        for flow in flows:
            then = min(then, flow.begins_s if flow.begins_s > now else now + flow.left / rate)
        for flow in coming:
            flow.left -= rate * (then - now)
        return then
