"""What throttling answers (503 SlowDown, 429, time-outs) do to a window of requests.

Answers are counted in *rounds*: one limit's worth of them, that is about a round trip, and at least 16.

1. At the end of a round with a share ``f`` throttled the limit is cut by ``f**2 / 2``: to a half in a storm.
2. Each success, in a round with less than a quarter throttled so far, raises the limit: by one, which
   doubles it in a round trip, below half of the *knee*, the limit that was throttled last; by a sixteenth
   above. A round of nothing but refusals says nothing of the knee.
3. Once the limit is back at what it was *before*, which rounds lower a little if a part was throttled, the
   ordinary controller goes on. So a store that has recovered is used in full again after some twenty round
   trips, and one that has become slower is found out without many refusals.

A round with less than a quarter throttled does not begin this. What is refused is not throughput: when more
in flight only brings more refusals, the ordinary controller's trials see it, and a few faults that no smaller
limit would have prevented must not make the window small.

Sources: Alizadeh et al., "Data Center TCP", SIGCOMM 2010 (a cut in proportion to the share marked); Cardwell
et al., "BBR Congestion Control v2", IETF 104, 2019 (tolerating some loss); slow start as in RFC 5681.

Threading: as `core.window`, which owns it. No clock.
"""

from __future__ import annotations

_LEAST_ROUND = 16
_STRAY_SHARE = 1 / 4
_STORM_SHARE = 1 / 2
_SLOW_GROWTH = 1 / 16  # of a success
_AGEING = 1 / 8  # of the share throttled: how fast what was before is given up


class Throttle:
    """The limit of a window while its store throttles: one request at the least."""

    __slots__ = ("_before", "_knee", "_limit", "_ok", "_throttled", "is_active", "is_counting")

    def __init__(self) -> None:
        self._limit = self._before = self._knee = 0.0
        self._ok = self._throttled = 0
        self.is_counting = False
        """Whether answers are to be counted."""
        self.is_active = False
        """Whether the limit is this one's."""

    @property
    def limit(self) -> int:
        """Requests allowed in flight now."""
        return max(1, int(self._limit))

    def count(self, limit: int, *, ok: int = 0, throttled: int = 0) -> None:
        """Count answers; `limit` is the window's own, where this is not active."""
        if not self.is_counting:
            self.is_counting = True
            self._limit = self._before = self._knee = float(limit)
        self._ok += ok
        self._throttled += throttled
        if self.is_active and ok:
            self._grow(ok)
        answers = self._ok + self._throttled
        if answers >= max(_LEAST_ROUND, self.limit):
            self._end_round(self._throttled / answers)
            self._ok = self._throttled = 0

    def _grow(self, ok: int) -> None:
        if self._throttled >= _STRAY_SHARE * (self._ok + self._throttled):
            return
        self._limit += ok if self._limit < self._knee / 2 else ok * _SLOW_GROWTH
        if self._limit >= self._before:
            self._limit = self._before
            self._ok = self._throttled = 0
            self.is_active = self.is_counting = False

    def _end_round(self, share: float) -> None:
        if share < _STRAY_SHARE:
            self.is_counting = self.is_active
            return
        self.is_active = True
        if share < 1:
            # Not all at once: the round in which a storm ends is a mixture, too.
            self._knee = max(self._limit, self._knee / 2)
        if share <= _STORM_SHARE:
            self._before *= 1 - _AGEING * share
        self._limit = max(1.0, self._limit * (1 - share**2 / 2))
