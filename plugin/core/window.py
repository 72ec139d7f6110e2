"""The short-queue window: how much may be in flight to one device or store (I1).

A priority queue is worthless in front of a device that already holds a second of work, so the
scheduler keeps in flight only what throughput needs. This module owns that number, in whatever
unit the scheduler counts (bytes for disks, requests for object stores).

1. Completions are gathered into *legs*: one window's worth under one limit, at least 16 ops.
   Slices submitted before the limit last changed are not counted, so a leg is a settled one.
2. A *trial* compares the held limit with another one by alternating legs, held, other, held, ...
   Neighbouring legs are paired, so drift of the device cancels out of their difference.
3. Each pair gives the elasticity of throughput, d log(rate) / d log(in flight): 1 while the
   device has idle channels, 0 when more in flight only waits longer. The limit seeks the place
   where it is 1/8, which maximises rate**7 / latency: Kleinrock's power, with the exponent raised
   until the price of a short queue is at most some 15% of throughput.
4. Pairs are added until their mean lies some standard errors from that place, on either side.
   A larger limit must prove itself. A smaller one wins ties: only latency would pay for the rest.
5. ``GROW`` tries a larger limit until it fails, ``SHRINK`` a smaller one until it fails, ``STEADY``
   holds still for 16 legs and goes round again. So growth is always possible again. Steps are
   factors: wide at first and while they succeed, 1.5 once the limit was found. A start shrinks
   before it grows: too few in flight cost some legs of throughput, too many cost seconds.
6. While *urgent* reads come, a trial of a larger limit is what they wait for. So none is made beyond
   the *ceiling* (the limit that was held when they began to come, or the first one), unless four trials
   in a row have shown that throughput still rises: then the device has idle channels.

Every constant is a ratio or a count: none is a time, a rate or a size. Demand that did not fill the
window says nothing about it: such a leg ends the trial and moves nothing.

Sources: Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016 (the
bandwidth-delay product as the target, probing by turns); Brakmo et al., "TCP Vegas", SIGCOMM 1994
(latency that grows without throughput is queueing); Kleinrock, "Power and deterministic rules of
thumb for probabilistic problems in computer communications", ICC 1979.

Where a store answers that it wants less, `core.throttle` has the limit until it no longer does.

Threading: no lock and no clock; all methods under the scheduler's lock. It admits nothing, counts
nothing in flight, knows no priorities and shares nothing between processes.
"""

from __future__ import annotations

import enum
import math

from headrace.core.evidence import Evidence, Leg
from headrace.core.throttle import Throttle

URGENT_SHARE = 8
"""One part in so many of the limit is kept for reads more urgent than all in flight."""

_ORDINARY_SHARE = 1 - 1 / URGENT_SHARE
_ELASTICITY = 1 / 8  # stop growing where 1% more in flight brings less than 1/8% more throughput
_LEG_OPS = 16  # a leg is at least so many ops ...
_LEG_SLICES = 4  # ... and slices, and one window
_REST_LEGS = 16
_URGENT_LEGS = 256  # so long after an urgent read the next one is expected
_URGENT_ELASTICITY = 1 / 4  # so much must be sure before those that come have to wait for a trial,
_URGENT_TRIALS = 4  # in so many trials in a row: noise outlasts a pair, so that one is wrong at times
_LEAST_PAIRS = 2  # a single pair cannot tell a gain from a jolt of the device
_MOST_PAIRS = 24  # then decide on what there is
_GROW_ERRORS = 2.5  # standard errors of the mean that prove a larger limit
_LATE_GROW_ERRORS = 1.0  # the same after the last pair
_SHRINK_ERRORS = 2.0
_FINE_STEP = 1.5
_WIDE_SHRINK_STEP = 4.0  # a step too far down costs some throughput, for a few legs
_WIDE_GROW_STEP = 2.0  # a step too far up may cost a stall: only where the limit is far away,
_STEEP = 1 / 2  # as throughput grew at least so steeply
_LEAST_STEEP = 2  # so many times in a row (once after a start)
_UNLIMITED_SHARE = 1 / 8  # of a leg's units; beyond it the leg measured demand, not the device
_LEAST_CHANGE = 0.1  # of log(in flight); less says nothing about elasticity


class WindowState(enum.Enum):
    """What the controller is doing."""

    SHRINK = "shrink"
    GROW = "grow"
    STEADY = "steady"
    THROTTLED = "throttled"


class Window:
    """Units (bytes, or requests) allowed in flight to one device.

    Parameters
    ----------
    initial, least, most : int
        The first limit and the bounds of trials, ``1 <= least <= initial <= most``. A store that answers
        that it wants less gets less, down to a single request.

    Raises
    ------
    ValueError
        If the three are not in that order.
    """

    __slots__ = (
        "_ceiling", "_elasticity", "_evidence", "_first", "_goal", "_held", "_in_flight", "_is_new",
        "_is_open", "_largest_op", "_largest_slice", "_last_s", "_least", "_leg", "_limit", "_most",
        "_op_units", "_opened_s", "_other", "_rest", "_settling", "_shrink_step", "_since_s", "_slices",
        "_state",
        "_steep", "_sure_elasticity", "_sure_trials", "_throttle", "_units", "_unlimited", "_urgent_legs",
    )  # fmt: skip

    def __init__(self, *, initial: int, least: int, most: int) -> None:
        if not 1 <= least <= initial <= most:
            raise ValueError(f"need 1 <= least <= initial <= most, not {least}, {initial}, {most}")
        self._least, self._most = least, most
        self._limit = self._held = self._other = initial
        self._state = WindowState.SHRINK
        self._shrink_step = _WIDE_SHRINK_STEP
        self._elasticity = 0.0  # as the last pairs saw it
        self._sure_elasticity = 0.0  # a standard error less
        self._sure_trials = 0  # in a row that proved `_URGENT_ELASTICITY`
        self._steep = 1  # steep GROWs in a row; the first one after a start has nothing to spoil
        self._is_new = True  # until the first GROW
        self._rest = 0
        self._ceiling = self._first = initial
        self._urgent_legs = 0  # for which urgent reads are expected
        self._evidence = Evidence()
        self._throttle = Throttle()
        self._leg: Leg | None = None  # the previous leg of the trial
        self._op_units = 0  # the largest op of the last leg
        self._since_s = self._last_s = -math.inf
        self._settling = 0
        self._largest_op = self._largest_slice = 0
        self._goal: float = initial
        self._open(0.0)
        self._is_open = False  # the first completion opens the first leg

    @property
    def limit(self) -> int:
        """Units allowed in flight now."""
        return self._limit

    @property
    def held(self) -> int:
        """The limit in force between trials, which try another one for a leg at a time."""
        return self._held

    @property
    def state(self) -> WindowState:
        """What the controller is doing."""
        return self._state

    @property
    def urgent_limit(self) -> int:
        """Units with which a read more urgent than all in flight may still start.

        A trial of a smaller limit begins with more in flight than that, and is not what it shall wait for.
        """
        return self._limit if self._state is WindowState.THROTTLED else max(self._limit, self._held)

    @property
    def expects_urgent(self) -> bool:
        """Whether more urgent reads came lately: who reads much should do it in short ops."""
        return self._urgent_legs > 0

    def observe(  # noqa: C901 - in one body, as it runs for each slice
        self,
        *,
        now: float,
        units: int,
        latency_s: float,
        in_flight: int,
        is_limited: bool,
        ops: int = 1,
    ) -> None:
        """Take note of one completed slice; cheap but for one call a leg.

        Parameters
        ----------
        now : float
            Time of completion of the slice's last op, seconds of any monotonic clock.
        units : int
            Units of the slice. What the page cache answered is not to be observed.
        latency_s : float
            Seconds from submission to `now`.
        in_flight : int
            Units in flight just before this completion, its own included.
        is_limited : bool
            Whether the window held demand back since the last observation.
        ops : int
            Ops of the slice, all submitted together.
        """
        if self._throttle.is_counting:
            self._count(now, ok=ops)
            if self._state is WindowState.THROTTLED:
                return
        idle_s = now - latency_s - self._last_s
        self._last_s = now
        if self._settling > 0 or now - latency_s < self._since_s:
            self._settling -= units
            return
        if not self._is_open or (idle_s > latency_s and in_flight <= units):
            self._begin(now, is_limited=is_limited)
            return
        self._slices += 1
        self._units += units
        self._in_flight += in_flight
        if units > self._largest_slice:  # noqa: PLR1730 (a call would cost more)
            self._largest_slice = units
        op_units = units // ops if ops > 1 else units
        if op_units > self._largest_op:  # noqa: PLR1730 (a call would cost more)
            self._largest_op = op_units
        if not is_limited:
            self._unlimited += units
        if self._units >= self._goal:
            self._close(now)

    def note_urgent(self, now: float) -> None:
        """Take note of a read more urgent than what is in flight, which it has to wait for."""
        if not self._urgent_legs:
            self._ceiling = max(self._held, self._first)
            if self._limit > self._held:
                self._start(WindowState.SHRINK)
                self._abandon(now)
        self._urgent_legs = _URGENT_LEGS

    def note_throttled(self, now: float) -> None:
        """Take note of one answer that asks for less; only of windows in requests."""
        self._count(now, throttled=1)

    def _count(self, now: float, *, ok: int = 0, throttled: int = 0) -> None:
        """Count answers towards a round of throttling, and act on its end."""
        throttle = self._throttle
        throttle.count(self._held, ok=ok, throttled=throttled)
        if throttle.is_active:
            self._state = WindowState.THROTTLED
            self._limit = throttle.limit
        elif self._state is WindowState.THROTTLED:
            self._held = min(self._most, throttle.limit)
            self._shrink_step = _FINE_STEP
            self._state, self._rest = WindowState.STEADY, _REST_LEGS
            self._abandon(now)

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override is of 3.12
        return (
            f"<Window {self._state.value} limit={self._limit} held={self._held} "
            f"in [{self._least}, {self._most}]>"
        )

    # Legs.

    def _begin(self, now: float, *, is_limited: bool) -> None:
        """Start a leg at its first completion, or anew after the device had nothing to do."""
        if self._is_open and not is_limited:
            self._abandon(now)
        else:
            self._open(now)

    def _open(self, now: float) -> None:
        """Start to measure a leg: the completion at `now` is its zero."""
        self._is_open = True
        self._opened_s = now
        self._slices = self._units = self._in_flight = self._unlimited = 0
        self._largest_op = self._largest_slice = 0
        self._goal = max(1, self._limit)

    def _close(self, now: float) -> None:
        """End the leg if it is long enough, and act on it."""
        slices = self._units / self._largest_slice  # point reads beside a scan hardly count
        self._goal = max(self._limit, _LEG_OPS * self._largest_op, _LEG_SLICES * self._largest_slice)
        if self._units < self._goal:
            return
        elapsed_s = now - self._opened_s
        if not 0 < elapsed_s < math.inf or self._in_flight <= 0:
            self._open(now)  # a clock too coarse for this leg, or no clock at all
            return
        self._op_units = self._largest_op
        self._urgent_legs = max(0, self._urgent_legs - 1)
        if self._has_raised() or self._unlimited > _UNLIMITED_SHARE * self._units:
            self._abandon(now)
            return
        leg = Leg(
            self._limit,
            slices,
            math.log(self._units) - math.log(elapsed_s),
            math.log(self._in_flight / self._slices),
        )
        self._advance(now, leg)

    def _has_raised(self) -> bool:
        """Raise the held limit to one op, if it is below, and say whether it was.

        An op that does not fit waits for an empty device, so a smaller window saves nothing.
        """
        floor = min(self._most, self._one_op())
        if self._held >= floor:
            return False
        self._held = floor
        return True

    def _abandon(self, now: float) -> None:
        """Drop the trial: demand was too low to tell anything, or its terms have changed."""
        self._evidence.reset()
        self._leg = None
        self._use(self._held, now)

    def _use(self, limit: int, now: float) -> None:
        """Measure the next leg under `limit`."""
        if limit == self._limit:
            self._open(now)
            return
        self._settling = max(limit, self._limit)
        self._limit = limit
        self._since_s = now
        self._is_open = False

    # Trials.

    def _advance(self, now: float, leg: Leg) -> None:
        """Go from one measured leg to the next."""
        before, self._leg = self._leg, leg
        if self._state is WindowState.STEADY:
            self._rest -= 1
            if self._rest <= 0:
                self._start(WindowState.GROW)
        elif before is None:
            self._start(self._state)  # only now the size of an op is known
        elif {before.limit, leg.limit} == {self._held, self._other}:
            self._weigh(before, leg)
        is_trying = self._state is not WindowState.STEADY
        is_next_other = is_trying and leg.limit == self._held
        self._use(self._other if is_next_other else self._held, now)

    def _weigh(self, one: Leg, two: Leg) -> None:
        """Add a pair to the evidence, and end the trial once it speaks clearly."""
        low, high = (one, two) if one.limit < two.limit else (two, one)
        spread = high.log_in_flight - low.log_in_flight
        if spread < _LEAST_CHANGE:
            self._conclude(is_larger_better=self._state is WindowState.SHRINK)
            return
        # Outside -1..1 it was no elasticity but a stall, or a change of the device.
        gain = min(spread, max(-spread, high.log_rate - low.log_rate))
        evidence = self._evidence
        evidence.add(gain - _ELASTICITY * spread, one, two)
        self._elasticity = _ELASTICITY + evidence.mean / spread
        self._sure_elasticity = self._elasticity - evidence.error() / spread
        is_gain = evidence.mean > 0
        is_wide = high.limit > _WIDE_GROW_STEP * low.limit
        if evidence.count < _LEAST_PAIRS and (is_gain or not is_wide):
            return
        if evidence.is_beyond(_GROW_ERRORS if is_gain else _SHRINK_ERRORS):
            self._conclude(is_larger_better=is_gain)
        elif evidence.count >= _MOST_PAIRS:
            self._conclude(is_larger_better=is_gain and evidence.is_beyond(self._last_errors()))

    def _last_errors(self) -> float:
        """Return the proof asked of the larger limit when time is up."""
        return _LATE_GROW_ERRORS if self._state is WindowState.GROW else 0.0

    def _conclude(self, *, is_larger_better: bool) -> None:
        """Move, or not, and choose the next trial."""
        if self._evidence.count:
            is_sure = self._sure_elasticity > _URGENT_ELASTICITY
            self._sure_trials = self._sure_trials + 1 if is_sure else 0
        self._evidence.conclude()
        if self._state is WindowState.GROW:
            is_steep = is_larger_better and self._elasticity > _STEEP
            self._steep = self._steep + 1 if is_steep else 0
            if is_larger_better:
                self._held = self._other
                self._ceiling = max(self._ceiling, self._held)
            self._start(WindowState.GROW if is_larger_better else WindowState.SHRINK)
        elif is_larger_better:
            self._keep()
        else:
            self._held = self._other
            self._shrink_step = min(_WIDE_SHRINK_STEP, self._shrink_step * _FINE_STEP)
            self._start(WindowState.SHRINK)

    def _keep(self) -> None:
        """Nothing so much smaller does: try a finer step, then rest (or grow, before the first)."""
        is_fine = self._shrink_step <= _FINE_STEP
        self._shrink_step = _FINE_STEP
        if not is_fine:
            self._start(WindowState.SHRINK)
        elif self._is_new:
            self._start(WindowState.GROW)
        else:
            self._state = WindowState.STEADY
            self._rest = _REST_LEGS

    def _start(self, state: WindowState) -> None:
        """Set up a trial, or what follows it where there is no room for one."""
        self._state = state
        self._evidence.reset()
        if state is WindowState.GROW:
            self._is_new = False
            self._other = self._larger()
            if self._other == self._held:
                self._start(WindowState.SHRINK)
        else:
            self._other = self._smaller()
            if self._other == self._held:
                self._sure_trials = _URGENT_TRIALS  # a device with one op to do is idle between two
                self._shrink_step = _FINE_STEP
                self._keep()

    def _larger(self) -> int:
        """Return the next limit up: a step, and enough for one op more; the held one if there is none."""
        op = self._op_units
        fitting = max(1, int(self._held * _ORDINARY_SHARE / op)) if op > 0 else 1
        one_more = (fitting + 1) * op / _ORDINARY_SHARE
        step = _WIDE_GROW_STEP if self._steep >= _LEAST_STEEP and not self._urgent_legs else _FINE_STEP
        most = self._most
        if self._urgent_legs and self._sure_trials < _URGENT_TRIALS:
            most = max(self._ceiling, self._held)
        return min(most, math.ceil(max(self._held * step, one_more)))

    def _smaller(self) -> int:
        """Return the next limit down, or the held one when a single op fits already."""
        smaller = max(self._least, self._one_op(), int(self._held / self._shrink_step))
        return min(self._held, smaller)

    def _one_op(self) -> int:
        """Return the limit under which just one op fits."""
        return math.ceil(self._op_units / _ORDINARY_SHARE)
