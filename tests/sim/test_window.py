"""The window controller on simulated devices: one set of constants for all of them."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sim.devices import (
    KIB,
    MIB,
    POINT_BYTES,
    Device,
    HardDisk,
    Load,
    Nvme,
    ObjectStore,
    StripedNvme,
    Trace,
    VirtualDisk,
    best_fixed_rate,
    drifting,
    halved,
    read_through,
    unloaded_point_s,
)

from headrace.core.window import Window, WindowState

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.core.evidence import Leg

OP = 256 * KIB
FIXED_OPS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
FIXED_REQUESTS = (25, 50, 75, 100, 130, 170, 250, 500)


@dataclass(frozen=True)
class Case:
    """A device, a fair first limit for it, and how much slower a point read may become."""

    device: Callable[[], Device]
    op: int
    fair: int
    least: int
    point_every_s: float
    most_p50: float
    most_p99: float
    slices: int = 6000

    @property
    def point(self) -> int:
        return 1 if self.op == 1 else POINT_BYTES

    def load(self, *, slices: int = 0, point_every_s: float | None = None) -> Load:
        return Load(
            slices or self.slices,
            (self.op,),
            point_every_s=point_every_s or self.point_every_s,
            point_units=self.point,
        )

    def best_rate(self) -> float:
        counts = FIXED_REQUESTS if self.op == 1 else FIXED_OPS
        limits = tuple(math.ceil(n * self.op * 8 / 7) for n in counts)
        load = self.load(slices=2000, point_every_s=math.inf)
        return best_fixed_rate(self.device, load, limits)[0]

    def window(self, factor: float) -> Window:
        initial = max(self.least, int(self.fair * factor))
        return Window(initial=initial, least=self.least, most=self.fair * 64)


def _disk(
    device: Callable[[], Device],
    most_p50: float,
    most_p99: float,
    *,
    point_every_s: float = 1e-3,
    slices: int = 6000,
) -> Case:
    return Case(device, OP, 600 * KIB, 4 * KIB, point_every_s, most_p50, most_p99, slices)


def _store(device: Callable[[], Device], most_p50: float, most_p99: float) -> Case:
    return Case(device, 1, 115, 1, 0.02, most_p50, most_p99)


CASES = {
    "nvme": _disk(Nvme, 3, 4),
    "nvme noisy": _disk(lambda: Nvme(noise=0.3, speed=drifting(0.05)), 5, 6),
    "virtual disk": _disk(VirtualDisk, 5, 4),
    "virtual disk noisy": _disk(lambda: VirtualDisk(noise=0.3, speed=drifting(0.05)), 5, 5),
    "object store": _store(ObjectStore, 2, 3),
    "object store noisy": _store(lambda: ObjectStore(noise=0.5), 3, 3),
    "hard disk": _disk(HardDisk, 3, 4, point_every_s=0.3, slices=3000),
}


@pytest.mark.parametrize("factor", [1 / 16, 1, 16])
@pytest.mark.parametrize("name", CASES)
def test_keeps_throughput_and_a_short_queue(name: str, factor: float) -> None:
    case = CASES[name]
    trace = read_through(case.device(), case.window(factor), case.load())
    assert trace.rate(0.4) >= 0.85 * case.best_rate()
    unloaded = case.device()
    p50_s = unloaded_point_s(unloaded, 50, case.point)
    p99_s = unloaded_point_s(unloaded, 99, case.point)
    assert trace.point_s(50, 0.5) <= case.most_p50 * p50_s
    assert trace.point_s(99, 0.5) <= case.most_p99 * p99_s


@pytest.mark.parametrize("factor", [1 / 16, 16])
@pytest.mark.parametrize("name", ["nvme", "virtual disk", "hard disk"])
def test_a_wrong_start_is_over_after_some_hundred_completions(name: str, factor: float) -> None:
    case = CASES[name]
    trace = read_through(case.device(), case.window(factor), case.load(slices=900))
    assert trace.rate(600 / 900, 1) >= 0.85 * case.best_rate()
    assert statistics.median(trace.limits(600 / 900)) <= 8 * OP


def test_a_store_started_far_too_high_comes_down_within_a_few_windows() -> None:
    case = CASES["object store"]
    trace = read_through(case.device(), case.window(16), case.load(slices=8000))
    assert trace.limits(0)[0] == 1840
    assert statistics.median(trace.limits(0.75)) <= 2.1 * case.fair


def test_a_store_started_far_too_low_comes_up_within_hundreds() -> None:
    case = CASES["object store"]
    trace = read_through(case.device(), case.window(1 / 16), case.load(slices=2000))
    assert trace.rate(0.5) >= 0.85 * case.best_rate()


@pytest.mark.parametrize("cliff", ["starve", "stall"])
def test_stays_off_the_cliff(cliff: str) -> None:
    """Beyond 1.25 MiB in flight a point read waits half a second, and the scan may not notice."""
    device = VirtualDisk(cliff=cliff)
    window = Window(initial=MIB, least=4 * KIB, most=64 * MIB)
    trace = read_through(device, window, Load(15_000, point_every_s=1e-3))
    assert device.stalls == 0
    assert max(limit for _, _, limit in trace.done) * 7 / 8 <= 5 * MIB / 4
    assert trace.point_s(99.9, 0) < 2e-3
    assert trace.rate(0.2) >= 0.85 * 1.6e9


@pytest.mark.parametrize("cliff", ["starve", "stall"])
def test_comes_back_over_the_cliff(cliff: str) -> None:
    device = VirtualDisk(cliff=cliff)
    window = Window(initial=16 * MIB, least=4 * KIB, most=64 * MIB)
    trace = read_through(device, window, Load(6000, point_every_s=1e-3))
    assert device.stalls == 1
    limits = trace.limits(0.25)
    assert max(limits) * 7 / 8 <= 5 * MIB / 4
    assert trace.point_s(99.9, 0.25) < 2e-3


@pytest.mark.parametrize(
    ("sizes", "ops"),
    [
        ((4 * KIB,), 1),
        ((4 * KIB,), 16),
        ((4 * KIB, OP), 1),
        ((64 * KIB,), 4),
        ((OP,), 2),
        ((128 * KIB, OP, 512 * KIB), 1),
    ],
)
@pytest.mark.parametrize("device", [Nvme, lambda: VirtualDisk(burst_bytes=64 * KIB)])
def test_any_size_of_ops_and_slices(device: Callable[[], Device], sizes: tuple[int, ...], ops: int) -> None:
    mean = sum(sizes) / len(sizes) * ops
    limits = tuple(int(n * mean * 8 / 7) + 1 for n in (1, 2, 4, 8, 16, 32, 64, 128))
    best, _ = best_fixed_rate(device, Load(2000, sizes, ops), limits)
    window = Window(initial=MIB, least=4 * KIB, most=64 * MIB)
    trace = read_through(device(), window, Load(8000, sizes, ops, point_every_s=1e-3))
    assert trace.rate(0.5) >= 0.85 * best
    assert trace.point_s(99, 0.5) < 2e-3


def test_a_device_without_a_knee() -> None:
    """Of n / (n + k) the limit takes the share at which latency starts to buy too little."""
    device = StripedNvme()
    window = Window(initial=600 * KIB, least=4 * KIB, most=256 * MIB)
    trace = read_through(device, window, Load(8000, point_every_s=1e-3))
    capacity = 32 * 16 * KIB / 90e-6
    assert 0.65 * capacity <= trace.rate(0.5) <= 0.96 * capacity
    assert max(trace.limits(0.5)) <= 64 * OP


@pytest.mark.parametrize("point_every_s", [1e-3, math.inf])
def test_tries_no_larger_limit_while_urgent_reads_come(point_every_s: float) -> None:
    """Without them it does, and finds what the device has."""
    window = Window(initial=MIB, least=4 * KIB, most=64 * MIB)
    trace = read_through(VirtualDisk(noise=0.3), window, Load(15_000, point_every_s=point_every_s))
    assert (max(trace.limits(0)) > MIB) is (point_every_s == math.inf)
    assert trace.rate(0.2) >= 0.85 * 1.6e9


def test_an_urgent_read_ends_the_trial_of_a_larger_limit() -> None:
    trials = set()
    for slices in range(3000, 6000, 97):
        window = Window(initial=MIB, least=4 * KIB, most=64 * MIB)
        now = read_through(VirtualDisk(burst_bytes=64 * KIB), window, Load(slices)).done[-1][0]
        held = window.held
        trials.add(window.limit > held)
        window.note_urgent(now)
        assert window.limit <= held
        assert window.held == held
    assert trials == {True, False}


def test_an_urgent_read_does_not_wait_for_a_smaller_limit() -> None:
    """A trial of one begins with more in flight."""
    trials = set()
    for slices in range(20, 200, 7):
        window = Window(initial=MIB, least=4 * KIB, most=64 * MIB)
        read_through(Nvme(), window, Load(slices))
        held = window.held
        trials.add(window.limit < held)
        assert window.urgent_limit == max(window.limit, held)
    assert trials == {True, False}


def test_throttled_is_throttled_for_all() -> None:
    window = Window(initial=100, least=1, most=100)
    while window.state is not WindowState.THROTTLED:
        window.note_throttled(1.0)
    assert window.urgent_limit == window.limit < 100


def test_after_an_urgent_read_the_next_one_is_expected_for_a_while() -> None:
    first = {}
    for is_expected in (False, True):
        window = Window(initial=900 * KIB, least=4 * KIB, most=64 * MIB)
        if is_expected:
            window.note_urgent(0.0)
        assert window.expects_urgent == is_expected
        limits = read_through(Nvme(noise=0.2), window, Load(8000)).limits(0)
        first[is_expected] = next(n for n, limit in enumerate(limits) if limit > 900 * KIB)
        assert not window.expects_urgent
    assert first[False] < first[True]
    assert first[True] > 256 * 16, "a leg is at least 16 ops"


def _median_limit(trace: Trace, start_s: float, end_s: float) -> float:
    return statistics.median(limit for now, _, limit in trace.done if start_s <= now < end_s)


def test_follows_a_device_that_slows_down_and_recovers() -> None:
    device = Nvme(speed=halved(0.6, 1.2))
    window = Window(initial=600 * KIB, least=4 * KIB, most=64 * MIB)
    trace = read_through(device, window, Load(70_000, (64 * KIB,), point_every_s=1e-3))
    for start_s, end_s, rate in [(0.3, 0.6, 3e9), (0.8, 1.2, 1.5e9), (1.5, 1.8, 3e9)]:
        assert trace.rate_between(start_s, end_s) >= 0.85 * rate
    slow = _median_limit(trace, 0.9, 1.2)
    assert slow < _median_limit(trace, 0.3, 0.6)
    assert slow < _median_limit(trace, 1.5, 1.8)
    slow_s = [s for at, s in trace.points if 0.8 <= at < 1.2]
    assert statistics.median(slow_s) <= 5 * unloaded_point_s(Nvme(), 50)


def test_low_demand_moves_nothing() -> None:
    window = Window(initial=2 * MIB, least=4 * KIB, most=64 * MIB)
    trace = read_through(Nvme(), window, Load(3000, think_s=1e-3))
    assert set(trace.limits(0)) == {2 * MIB}


@pytest.mark.parametrize("gap_s", [1.0, 1e-4])
def test_low_demand_keeps_what_was_learned(gap_s: float) -> None:
    """Whatever trial it meets, with pauses between the reads or without."""
    trials = set()
    for slices in range(1000, 1400, 23):
        window = Window(initial=64 * KIB, least=4 * KIB, most=64 * MIB)
        now = read_through(Nvme(), window, Load(slices)).done[-1][0]
        held = window.held
        trials.add(window.limit - held)
        for _ in range(1000):
            now += gap_s
            window.observe(now=now, units=OP, latency_s=1e-4, in_flight=OP, is_limited=False)
        assert window.limit == window.held == held
    assert min(trials) < 0 < max(trials)  # larger and smaller limits were being tried


def test_a_pause_is_not_low_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is idle for a second now and then; the window is full before and after."""
    window = Window(initial=2 * OP, least=OP, most=2 * OP)
    legs: list[Leg] = []
    monkeypatch.setattr(Window, "_advance", lambda _window, _now, leg: legs.append(leg))
    now = 0.0
    for n in range(2000):
        now += 1.0 if n % 17 == 0 else 1e-4
        window.observe(now=now, units=OP, latency_s=1e-4, in_flight=OP, is_limited=True)
    assert legs
    assert [leg.log_rate for leg in legs] == pytest.approx([math.log(OP / 1e-4)] * len(legs))


def test_a_pause_does_not_end_a_trial_where_demand_is_high() -> None:
    """A consumer that stops for a moment after every thirty reads, on a device that has channels left."""
    window = Window(initial=4 * OP, least=OP, most=64 * OP)
    now = 0.0
    for n in range(4000):
        is_first = n % 30 == 0
        now += 1.0 if is_first else 1e-3 * OP / window.limit
        in_flight = OP if is_first else window.limit
        window.observe(now=now, units=OP, latency_s=1e-3, in_flight=in_flight, is_limited=True)
    assert window.held > 8 * OP


def test_what_a_store_could_do_no_longer_is_less_when_it_recovers() -> None:
    """Rounds with some refusals lower what is gone back to."""
    window = Window(initial=100, least=1, most=100)
    for _ in range(20):
        for _ in range(70):
            window.observe(now=0.0, units=1, latency_s=0.02, in_flight=100, is_limited=True)
        for _ in range(40):
            window.note_throttled(0.0)
    assert window.state is WindowState.THROTTLED
    for _ in range(10_000):
        window.observe(now=0.0, units=1, latency_s=0.02, in_flight=100, is_limited=True)
        if window.state is not WindowState.THROTTLED:
            break
    assert window.limit == window.held < 100


def test_grows_again_from_the_least() -> None:
    """A hard disk wants one op; put the same window on a store and it grows a hundredfold."""
    window = Window(initial=64, least=1, most=4096)
    end_s = read_through(HardDisk(), window, Load(2000, (1,))).done[-1][0]
    assert window.held <= 2
    trace = read_through(ObjectStore(), window, Load(6000, (1,), start_s=end_s))
    assert statistics.median(trace.limits(0.5)) >= 70


@pytest.mark.parametrize("device", [HardDisk, Nvme])
def test_ops_that_outgrow_the_window_lift_it(device: Callable[[], Device]) -> None:
    """After a scan of small ops the window is below one large op, in whatever trial it is."""
    for slices in range(1500, 1510):
        window = Window(initial=64 * KIB, least=4 * KIB, most=64 * MIB)
        end_s = read_through(HardDisk(), window, Load(slices, (4 * KIB,))).done[-1][0]
        assert window.held < OP
        trace = read_through(device(), window, Load(1500, (OP,), start_s=end_s))
        assert window.held >= OP * 8 / 7
        assert trace.rate(0.7) >= (0.85 * 3e9 if device is Nvme else 0.85 * OP / 9.75e-3)


def test_the_same_run_twice_is_the_same() -> None:
    runs = [
        read_through(
            VirtualDisk(seed=3),
            Window(initial=MIB, least=4 * KIB, most=64 * MIB),
            Load(1500, point_every_s=1e-3),
        )
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_starts_at_the_initial_limit_and_says_so() -> None:
    window = Window(initial=100, least=10, most=1000)
    assert window.limit == 100
    assert (window.held, window.state) == (100, WindowState.SHRINK)
    assert repr(window) == "<Window shrink limit=100 held=100 in [10, 1000]>"


@pytest.mark.parametrize(("initial", "least", "most"), [(0, 0, 1), (1, 2, 3), (4, 2, 3), (-1, -1, 1)])
def test_bounds_out_of_order(initial: int, least: int, most: int) -> None:
    with pytest.raises(ValueError, match=f"not {least}, {initial}, {most}"):
        Window(initial=initial, least=least, most=most)


ANY_TIME = st.floats(allow_nan=True, allow_infinity=True)
OBSERVATION = st.fixed_dictionaries(
    {
        "now": ANY_TIME,
        "units": st.integers(0, 1 << 50),
        "latency_s": ANY_TIME,
        "in_flight": st.integers(0, 1 << 50),
        "is_limited": st.booleans(),
        "ops": st.integers(0, 1 << 20),
    }
)


@given(
    bounds=st.lists(st.integers(1, 1 << 40), min_size=3, max_size=3).map(sorted),
    seen=st.lists(OBSERVATION, max_size=60),
)
def test_any_observation_keeps_the_bounds(bounds: list[int], seen: list[dict[str, float]]) -> None:
    least, initial, most = bounds
    window = Window(initial=initial, least=least, most=most)
    for observation in seen:
        window.observe(**observation)
        assert least <= window.limit <= most
        assert least <= window.held <= most
        assert isinstance(window.limit, int)


@given(
    bounds=st.lists(st.integers(1, 400), min_size=3, max_size=3).map(sorted),
    steps=st.lists(
        st.tuples(st.floats(1e-6, 1e-1), st.integers(1, 64), st.integers(1, 8), st.booleans()),
        min_size=1,
        max_size=40,
    ),
)
def test_any_device_keeps_the_bounds(bounds: list[int], steps: list[tuple[float, int, int, bool]]) -> None:
    """Plausible completions, so that legs end and trials conclude."""
    least, initial, most = bounds
    window = Window(initial=initial, least=least, most=most)
    now = 0.0
    for _ in range(10):
        for gap_s, units, ops, is_limited in steps:
            now += gap_s
            in_flight = max(units, window.limit)
            latency_s = gap_s * max(1, in_flight // units)
            window.observe(
                now=now,
                units=units,
                latency_s=latency_s,
                in_flight=in_flight,
                is_limited=is_limited,
                ops=ops,
            )
            assert least <= window.limit <= most
