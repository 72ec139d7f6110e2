"""The link to a store: no more bytes are in flight than it brings within half of an attempt's time.

An attempt that runs out of time is made again, and so are all the others that shared the link with it: what
came of them is lost where the client cannot go on from it, and none ever ends. So ops that are too many bytes
for a slow link must not be started, however few *requests* they are.

1. Each completion is a sample of the link's rate: the bytes that came between the admission of its slice and
   its end, over that time. The best one counts, and fades, for a link may become slower.
2. The limit is what that rate brings in half of the time one attempt has: a rate may halve unforeseen.
3. Until a rate is known, and where only short reads tell of it, the link is taken to bring `LEAST_RATE`.
4. An attempt that ran out of time lowers both, by its share of what was in flight.

On a fast link the first completions lift the limit out of sight.

Source: Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016 (samples of the
delivery rate, and the best of them).

Threading: as `core.room`, which owns it. No clock.
"""

from __future__ import annotations

LEAST_RATE = 2 << 20
"""Bytes a second of a link of which nothing is known: some 17 Mbit/s."""

_SHARE = 1 / 2  # of an attempt's time
_FADE = 1 / 64  # a completion


class Link:
    """What may be in flight on the link to one store.

    Parameters
    ----------
    try_timeout_s
        Seconds one attempt of an op has.
    """

    __slots__ = ("_floor", "_floor_at_first", "_known", "_try_timeout_s", "arrived_bytes")

    def __init__(self, try_timeout_s: float) -> None:
        self._try_timeout_s = try_timeout_s
        self._floor_at_first = self._floor = LEAST_RATE * try_timeout_s
        self._known = 0.0  # what the best rate brings in an attempt's share
        self.arrived_bytes = 0
        """All that ever came."""

    @property
    def limit_bytes(self) -> int:
        """Bytes allowed in flight now; a single op always is."""
        return int(max(self._floor, self._known))

    def note_arrival(self, nbytes: int, arrived_before: int, elapsed_s: float) -> None:
        """Take note of bytes that came.

        Parameters
        ----------
        arrived_before, elapsed_s
            `arrived_bytes` when the slice they are of was admitted, and the seconds since.
        """
        self.arrived_bytes += nbytes
        self._floor = min(self._floor_at_first, self._floor * (1 + _FADE))
        brought = 0.0
        if elapsed_s > 0:
            brought = (self.arrived_bytes - arrived_before) / elapsed_s * self._try_timeout_s * _SHARE
        self._known = max(brought, self._known * (1 - _FADE))

    def note_late(self, in_flight_ops: int) -> None:
        """Take note of one attempt, of so many that are in flight, that ran out of time."""
        left = 1 - 1 / (2 * max(in_flight_ops, 1))
        self._floor *= left
        self._known *= left
