"""Simulated devices, and the closed loop that reads from them through a window.

Discrete-event and deterministic: a device answers a submission with the time of its completion,
from its own seeded generator and what it was given before. `read_through` is the smallest
scheduler there is: scan ops up to 7/8 of the window (always one), point reads up to all of it,
ahead of the scan. Times in seconds, sizes in units of the device (bytes, or requests).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KIB, MIB = 1 << 10, 1 << 20
POINT_BYTES = 4 * KIB


class Device(Protocol):
    """Anything that says when what is submitted now will be done."""

    def submit(self, now: float, units: int, in_flight: int) -> float:
        """Return the time of completion; `in_flight` counts `units` too."""


class WindowLike(Protocol):
    """What the loop needs of a window."""

    @property
    def limit(self) -> int: ...

    @property
    def urgent_limit(self) -> int: ...

    def observe(
        self,
        *,
        now: float,
        units: int,
        latency_s: float,
        in_flight: int,
        is_limited: bool,
        ops: int = 1,
    ) -> None: ...

    def note_urgent(self, now: float) -> None: ...


class FixedWindow:
    """A window that never moves: what the controller is compared with."""

    def __init__(self, limit: int) -> None:
        self.limit = self.urgent_limit = limit

    def observe(self, **_seen: float) -> None:
        """Learn nothing."""

    def note_urgent(self, now: float) -> None:
        """Change nothing."""


def no_change(_now: float) -> float:
    """Return the speed of a device that is always the same."""
    return 1.0


def halved(start_s: float, end_s: float) -> Callable[[float], float]:
    """Return the speed of a device that is slowed down to a half for a while."""
    return lambda now: 0.5 if start_s <= now < end_s else 1.0


def drifting(period_s: float, share: float = 0.25) -> Callable[[float], float]:
    """Return the speed of a device with neighbours that come and go."""
    return lambda now: 1 + share * math.sin(2 * math.pi * now / period_s)


@dataclass
class _Noise:
    """Lognormal factors of mean 1, drawn in blocks."""

    sigma: float
    seed: int
    _factors: Iterator[float] = field(init=False)

    def __post_init__(self) -> None:
        self._factors = self._draw(np.random.default_rng(self.seed))

    def _draw(self, rng: np.random.Generator) -> Iterator[float]:
        while True:
            normal = rng.standard_normal(4096)
            yield from np.exp(self.sigma * normal - self.sigma**2 / 2).tolist()

    def __call__(self) -> float:
        return next(self._factors)


class Nvme:
    """Channels of 90 us in parallel, then one bus of 3 GB/s."""

    def __init__(
        self,
        *,
        seed: int = 0,
        noise: float = 0.05,
        channels: int = 64,
        base_s: float = 90e-6,
        rate: float = 3e9,
        speed: Callable[[float], float] = no_change,
    ) -> None:
        self._noise = _Noise(noise, seed)
        self._free_s = [0.0] * channels
        self._bus_free_s = 0.0
        self._base_s, self._rate, self._speed = base_s, rate, speed

    def submit(self, now: float, units: int, in_flight: int) -> float:
        del in_flight
        start_s = max(now, heapq.heappop(self._free_s))
        ready_s = start_s + self._base_s * self._noise()
        heapq.heappush(self._free_s, ready_s)
        transfer_s = units / (self._rate * self._speed(now)) * self._noise()
        self._bus_free_s = max(ready_s, self._bus_free_s) + transfer_s
        return self._bus_free_s


class StripedNvme:
    """An op is cut into pages which lie on channels at random: some queue, others idle.

    Throughput grows with what is in flight as n / (n + k), with no knee at all.
    """

    def __init__(self, *, seed: int = 0, channels: int = 32, page_bytes: int = 16 * KIB) -> None:
        self._rng = np.random.default_rng(seed)
        self._free_s = np.zeros(channels)
        self._page_bytes = page_bytes

    def submit(self, now: float, units: int, in_flight: int) -> float:
        del in_flight
        pages = max(1, units // self._page_bytes)
        end_s = now
        for channel in self._rng.integers(0, len(self._free_s), pages).tolist():
            free_s = max(now, float(self._free_s[channel])) + 90e-6
            self._free_s[channel] = free_s
            end_s = max(end_s, free_s)
        return end_s


class VirtualDisk:
    """A cloud disk: 1.6 GB/s by a token bucket over a faster link, and a cliff.

    With more than `cliff_bytes` in flight the queue above the limiter overflows. Either a small
    read somewhere else starves for half a second while the scan sees nothing (``starve``, what
    was measured: an elevator's read deadline), or the whole device stalls for half a second now
    and then and makes up for it from its tokens (``stall``); throughput stays the same.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        cliff: str = "starve",
        cliff_bytes: int = 5 * MIB // 4,
        rate: float = 1.6e9,
        burst_bytes: float = 32 * MIB,
        speed: Callable[[float], float] = no_change,
        noise: float = 0.1,
    ) -> None:
        self._noise = _Noise(noise, seed)
        self._rng = np.random.default_rng(seed + 1)
        self._cliff, self._cliff_bytes = cliff, cliff_bytes
        self._rate, self._speed = rate, speed
        self._tokens = self._tokens_most = self._burst_bytes = burst_bytes
        self._token_s = self._free_s = self._stalled_until_s = 0.0
        self.stalls = 0

    def submit(self, now: float, units: int, in_flight: int) -> float:
        base_s = 40e-6 + self._rng.exponential(30e-6)
        start_s = max(now + base_s, self._free_s)
        if in_flight > self._cliff_bytes:
            start_s = self._over_the_cliff(now, start_s, units)
            if units <= POINT_BYTES and self._cliff == "starve":
                return start_s
        self._free_s = self._pass_limiter(start_s, units)
        return self._free_s

    def _over_the_cliff(self, now: float, start_s: float, units: int) -> float:
        if self._cliff == "starve":
            is_starved = units <= POINT_BYTES
            self.stalls += is_starved
            return start_s + 0.5 * self._rng.uniform(0.9, 1.0) if is_starved else start_s
        if now < self._stalled_until_s:
            return start_s
        self.stalls += 1
        self._stalled_until_s = now + 1.5  # a third stalled, the rest making up for it
        self._tokens_most = self._burst_bytes + 0.5 * self._rate
        return start_s + 0.5

    def _pass_limiter(self, start_s: float, units: int) -> float:
        rate = self._rate * self._speed(start_s)
        link_s = start_s + units / (1.5 * rate) * self._noise()
        tokens = self._tokens + rate * (start_s - self._token_s)
        self._tokens = min(self._tokens_most, tokens) - units
        self._tokens_most = max(self._burst_bytes, self._tokens)
        self._token_s = start_s
        return max(link_s, start_s - self._tokens / rate)


class ObjectStore:
    """Requests of 20 ms, a hundred at a time; what comes on top waits."""

    def __init__(self, *, seed: int = 0, noise: float = 0.2, servers: int = 100) -> None:
        self._noise = _Noise(noise, seed)
        self._free_s = [0.0] * servers

    def submit(self, now: float, units: int, in_flight: int) -> float:
        del in_flight, units
        start_s = max(now, heapq.heappop(self._free_s))
        done_s = start_s + 20e-3 * self._noise()
        heapq.heappush(self._free_s, done_s)
        return done_s


class HardDisk:
    """One head, 8 ms to seek, 150 MB/s."""

    def __init__(self, *, seed: int = 0, noise: float = 0.2) -> None:
        self._noise = _Noise(noise, seed)
        self._free_s = 0.0

    def submit(self, now: float, units: int, in_flight: int) -> float:
        del in_flight
        self._free_s = max(now, self._free_s) + 8e-3 * self._noise() + units / 150e6
        return self._free_s


@dataclass
class Trace:
    """What happened: scan completions (time, units, limit at the time), point latencies."""

    done: list[tuple[float, int, int]] = field(default_factory=list)
    points: list[tuple[float, float]] = field(default_factory=list)

    def rate(self, since: float = 0.5, until: float = 1.0) -> float:
        """Return units a second of the scan between two shares of its completions."""
        part = self.done[int(since * len(self.done)) : int(until * len(self.done))]
        return sum(units for _, units, _ in part[1:]) / (part[-1][0] - part[0][0])

    def rate_between(self, start_s: float, end_s: float) -> float:
        """Return units a second of the scan between two times."""
        return sum(u for now, u, _ in self.done if start_s <= now < end_s) / (end_s - start_s)

    def limits(self, since: float = 0.5) -> list[int]:
        """Return the limits at each completion, from a share of them on."""
        return [limit for _, _, limit in self.done[int(since * len(self.done)) :]]

    def point_s(self, percentile: float, since: float = 0.5) -> float:
        """Return a percentile of the point reads' latencies after a share of the scan."""
        start_s = self.done[int(since * len(self.done))][0] if self.done else 0.0
        return float(np.percentile([s for at, s in self.points if at >= start_s], percentile))


@dataclass
class Load:
    """What to read: a scan of so many slices, and point reads beside it."""

    slices: int
    op_sizes: tuple[int, ...] = (256 * KIB,)
    ops: int = 1  # of a slice
    point_every_s: float = math.inf
    point_units: int = POINT_BYTES
    think_s: float = 0.0  # the scan's consumer asks for a slice only so often: it limits itself
    start_s: float = 0.0
    seed: int = 7


class _Loop:
    """One run of a load on a device through a window."""

    def __init__(self, device: Device, window: WindowLike, load: Load) -> None:
        self.device, self.window, self.load = device, window, load
        self.trace = Trace()
        self.rng = np.random.default_rng(load.seed)
        # at, tie, kind, units of an op, ops, since
        self.events: list[tuple[float, int, str, int, int, float]] = []
        self.ties = itertools.count()
        self.sizes = itertools.cycle(self._sizes())
        self.waiting: deque[tuple[float, int]] = deque()  # point reads
        self.left, self.ready = load.slices, 0 if load.think_s else load.slices
        self.next_size = next(self.sizes)
        self.in_flight, self.is_limited = 0, False

    def _sizes(self) -> list[int]:
        return [int(size) for size in self.rng.choice(self.load.op_sizes, 997)]

    def run(self) -> Trace:
        start_s = self.load.start_s
        self._schedule_point(start_s)
        if self.load.think_s:
            self._push(start_s, "think", 0, 0, start_s)
        self._admit(start_s)
        while self.left and self.events:
            now, _, kind, units, ops, since_s = heapq.heappop(self.events)
            getattr(self, f"_on_{kind}")(now, units, ops, since_s)
            self._admit(now)
        return self.trace

    def _push(self, at: float, kind: str, units: int, ops: int, since_s: float) -> None:
        heapq.heappush(self.events, (at, next(self.ties), kind, units, ops, since_s))

    def _schedule_point(self, now: float) -> None:
        if self.load.point_every_s < math.inf:
            at = now + self.rng.exponential(self.load.point_every_s)
            self._push(at, "point", self.load.point_units, 1, at)

    def _on_point(self, _now: float, units: int, _ops: int, since_s: float) -> None:
        self.waiting.append((since_s, units))

    def _on_think(self, now: float, _units: int, _ops: int, _since_s: float) -> None:
        self.ready = min(self.ready + 1, self.left)
        self._push(now + self.load.think_s, "think", 0, 0, 0.0)

    def _on_point_done(self, now: float, units: int, ops: int, since_s: float) -> None:
        self._complete(now, units, since_s, ops)
        self._schedule_point(now)  # one at a time, as its reader waits for it

    def _on_scan_done(self, now: float, units: int, ops: int, since_s: float) -> None:
        self.left -= 1
        self.trace.done.append((now, units * ops, self.window.limit))
        self._complete(now, units * ops, since_s, ops)

    def _complete(self, now: float, units: int, since_s: float, ops: int) -> None:
        self.window.observe(
            now=now,
            units=units,
            latency_s=now - since_s,
            in_flight=self.in_flight,
            is_limited=self.is_limited,
            ops=ops,
        )
        self.is_limited = False
        self.in_flight -= units

    def _admit(self, now: float) -> None:
        while self.waiting and self._fitting(self.waiting[0][1], self.window.urgent_limit):
            since_s, units = self.waiting.popleft()
            if self.in_flight and units > 1:  # a window of requests is not told
                self.window.note_urgent(now)
            done_s = self._submit(now, units, 1, "point_done")
            self.trace.points.append((since_s, done_s - since_s))
        while self.ready and (ops := self._fitting(self.next_size, self.window.limit * 7 // 8)):
            self.ready -= 1
            self._submit(now, self.next_size, min(ops, self.load.ops), "scan_done")
            self.next_size = next(self.sizes)

    def _submit(self, now: float, units: int, ops: int, kind: str) -> float:
        done_s = now
        for _ in range(ops):
            self.in_flight += units
            done_s = max(done_s, self.device.submit(now, units, self.in_flight))
        self._push(done_s, kind, units, ops, now)
        return done_s

    def _fitting(self, units: int, limit: int) -> int:
        """Return how many ops of this size the limit has room for, one at least when idle."""
        fitting = max(int(self.in_flight == 0), (limit - self.in_flight) // units)
        self.is_limited |= fitting <= 0
        return max(0, fitting)


def read_through(device: Device, window: WindowLike, load: Load) -> Trace:
    """Run the load and return what happened."""
    return _Loop(device, window, load).run()


def best_fixed_rate(device: Callable[[], Device], load: Load, limits: tuple[int, ...]) -> tuple[float, int]:
    """Return the best throughput of any of the fixed windows, and that window."""
    return max((read_through(device(), FixedWindow(n), load).rate(0.1), n) for n in limits)


def unloaded_point_s(device: Device, percentile: float, units: int = POINT_BYTES) -> float:
    """Return a percentile of the latency of point reads made one at a time."""
    now, latencies = 0.0, []
    for _ in range(500):
        done_s = device.submit(now, units, units)
        latencies.append(done_s - now)
        now = done_s + 1e-3
    return float(np.percentile(latencies, percentile))
