"""What throttling answers (503 SlowDown, 429, time-outs) do to a window of requests.

Answers are counted in *rounds*, one limit's worth of them, that is about a round trip. At the end of a round
in which a share ``f`` was throttled

1. the limit is cut by ``f**2 / 2``: to a half in a storm, hardly at all for a stray fault, which no smaller
   limit would have prevented;
2. it grows by what is left of ``1 - 8 f``: to the double below half of the *knee*, the limit that was
   throttled last, and by a sixteenth above. A storm, more than half of a round, says nothing of the knee;
3. once it is back at what it was *before*, which a throttled round lowers a little, the ordinary controller
   goes on. So a store that has recovered is used in full again after some twenty round trips, and one
   that has become slower is found out without many refusals.

A round that begins while nothing is throttled and has less than a sixteenth of it is forgotten: the trials
of the ordinary controller go on beside a few faults.

Sources: Alizadeh et al., "Data Center TCP", SIGCOMM 2010 (a cut in proportion to the share marked); Cardwell
et al., "BBR Congestion Control v2", IETF 104, 2019 (tolerating some loss); slow start as in RFC 5681.

Threading: as `core.window`, which owns it. No clock.
"""

from __future__ import annotations

_STRAY_SHARE = 1 / 16
_STORM_SHARE = 1 / 2
_GROWTH_ENDS = 8.0  # one part in so many throttled, and the limit does not grow
_SLOW_GROWTH = 1 / 16
_AGEING = 1 / 8  # of the share throttled: how fast what was before is given up


class Throttle:
    """The limit of a window while its store throttles.

    Parameters
    ----------
    least
        The limit is never below.
    """

    __slots__ = ("_before", "_knee", "_least", "_limit", "_ok", "_throttled", "is_active", "is_counting")

    def __init__(self, least: int) -> None:
        self._least = least
        self._limit = self._before = self._knee = 0.0
        self._ok = self._throttled = 0
        self.is_counting = False
        """Whether answers are to be counted."""
        self.is_active = False
        """Whether the limit is this one's."""

    @property
    def limit(self) -> int:
        """Requests allowed in flight now."""
        return max(self._least, int(self._limit))

    def count(self, limit: int, *, ok: int = 0, throttled: int = 0) -> bool:
        """Count answers; returns whether `limit`, the window's own if this is not active, changes."""
        if not self.is_counting:
            self.is_counting = True
            self._limit = self._before = self._knee = float(limit)
        self._ok += ok
        self._throttled += throttled
        if self._ok + self._throttled < self.limit:
            return False
        self._end_round(self._throttled / (self._ok + self._throttled))
        self._ok = self._throttled = 0
        return self.limit != limit or not self.is_active

    def _end_round(self, share: float) -> None:
        if not self.is_active and share < _STRAY_SHARE:
            self.is_counting = False
            return
        self.is_active = True
        if 0 < share <= _STORM_SHARE:
            self._knee = self._limit
            self._before *= 1 - _AGEING * share
        growth = max(0.0, 1 - _GROWTH_ENDS * share)
        if self._limit >= self._knee / 2:
            growth *= _SLOW_GROWTH
        self._limit *= (1 - share**2 / 2) * (1 + growth)
        self._limit = max(self._least, self._limit)
        if share < _STRAY_SHARE and self._limit >= self._before:
            self._limit = max(self._least, self._before)
            self.is_active = self.is_counting = False
