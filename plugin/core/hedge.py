"""Hedging: a second request for an op that is late, within a budget. One for each store; off by default.

An op is late when it takes half as long again as 95 of 100 ops of about its length did lately. Each op earns
`share` of a second request, and some are kept: where everything is late, the budget ends it and the store is
not asked for more than that share on top.

Source: Dean and Barroso, "The Tail at Scale", CACM 56(2), 2013 (hedged requests).

Threading: all methods under the hub's lock. It knows no clock.
"""

from __future__ import annotations

from collections import deque

SHARE = 0.03
"""Second requests for each op, where hedging is on and nothing else was said."""

_KEPT = 10.0
_LATELY = 256
_LEAST_SEEN = 32
"""So many tell what is late. The first ones may have waited for connections: they count until others came."""
_LOOK_EVERY = 16
_QUANTILE = 0.95
_LATE = 1.5
_LENGTHS_ALIKE = 2  # powers of two


class Hedge:
    """When to send a second request, and whether.

    Parameters
    ----------
    share
        Second requests for each op, at the most.
    """

    __slots__ = ("_budget", "_delay_s", "_noted", "_seen", "_settled", "sent", "share")

    def __init__(self, share: float = SHARE) -> None:
        self.share = share
        self.sent = 0
        self._budget = 0.0
        self._noted = 0
        self._seen: dict[int, deque[float]] = {}
        self._delay_s: dict[int, float] = {}
        self._settled: set[int] = set()

    def delay_s(self, length: int) -> float | None:
        """Return after how long an op of `length` bytes is late; None while that is not known."""
        return self._delay_s.get(_kind(length))

    def may_send(self) -> bool:
        """Say whether a second request may be sent now, and count it."""
        if self._budget < 1:
            return False
        self._budget -= 1
        self.sent += 1
        return True

    def note(self, length: int, latency_s: float) -> None:
        """Take note of an op that succeeded after `latency_s` seconds, whichever request brought it."""
        self._budget = min(_KEPT, self._budget + self.share)
        kind = _kind(length)
        seen = self._seen.setdefault(kind, deque(maxlen=_LATELY))
        seen.append(latency_s)
        if len(seen) == 2 * _LEAST_SEEN and kind not in self._settled:
            self._settled.add(kind)
            for _ in range(_LEAST_SEEN):
                seen.popleft()
        self._noted += 1
        # Sorting is dear for each op, and the quantile moves slowly.
        is_due = self._noted % _LOOK_EVERY == 0 or kind not in self._delay_s
        if is_due and len(seen) >= _LEAST_SEEN:
            self._delay_s[kind] = _LATE * sorted(seen)[int(_QUANTILE * len(seen))]


def _kind(length: int) -> int:
    """Ops of one kind have about one length."""
    return length.bit_length() // _LENGTHS_ALIKE
