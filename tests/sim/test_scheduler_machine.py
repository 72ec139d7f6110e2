"""The scheduler core against a naive model, in any order of events (see `sim.model`).

The machine submits, starts past the queue, completes any op in flight, says how long results are, refuses,
fails, consumes, abandons, cancels, raises priorities, lets time pass, closes, and interrupts sections in the
middle. The model checks each admission as it happens and everything after each step.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sim.model import DEVICES, WITHOUT_LINK, Naive, World

from headrace.core.request import State
from headrace.core.room import TURN_BYTES
from headrace.errors import IllegalTransitionError
from headrace.types import UNKNOWN_LENGTH, Priority

LENGTHS = st.lists(st.integers(1, 60), max_size=9) | st.just([UNKNOWN_LENGTH])
BASES = st.integers(-2, 2)
INDEX = st.integers(0, 50)
# Few at a time: what is submitted meets on one of them.
TOGETHER = [("disk", "store"), ("requests", "disk"), ("calls", "store"), ("calls", "requests"), DEVICES]


class SchedulerMachine(RuleBasedStateMachine):
    """Any events, in any order."""

    world: World

    @initialize(
        budget=st.sampled_from([0, 40, 150, 1000]),
        process_limit=st.sampled_from([0, 0, 1, 3]),
        window=st.sampled_from([20, 100, 400]),
        devices=st.sampled_from(TOGETHER),
    )
    def begin(self, budget: int, process_limit: int, window: int, devices: tuple[str, ...]) -> None:
        self.world = World(budget=budget, process_limit=process_limit, window=window, devices=devices)

    @rule(
        device=INDEX,
        lengths=LENGTHS,
        base=BASES,
        position=st.integers(0, 3),
        scan=st.sampled_from(["a", "b", "c"]),
        kind=st.sampled_from(["demand"] * 5 + ["speculative"] * 2 + ["nested"]),
        group=st.sampled_from([None, None, 1, 2]),
        is_awaited=st.booleans(),
        series_ops=st.sampled_from([1, 1, 2, 3]),
    )
    def submit(
        self,
        device: int,
        lengths: list[int],
        base: int,
        position: int,
        scan: str,
        kind: str,
        group: int | None,
        is_awaited: bool,
        series_ops: int,
    ) -> None:
        name = _pick(list(self.world.schedulers), device)
        request = {
            "series_ops": series_ops if name in WITHOUT_LINK else 1,
            "result_bytes": sum(lengths) if lengths != [UNKNOWN_LENGTH] else 30,
            "priority": Priority(base, position),
            "scan": scan,
            "group": group,
            "is_speculative": kind == "speculative",
            "is_nested": kind == "nested",
            "unknown_bytes": 30,
        }
        naive = self.world.submit(name, lengths, **request)
        if is_awaited and kind != "speculative" and naive in self.world.known:
            self.world.await_(naive)

    @rule(
        device=INDEX,
        count=st.integers(2, 4),
        ops=st.integers(1, 9),
        length=st.sampled_from([1, 5, 10, 30, 60]),
        base=BASES,
        scan=st.sampled_from(["a", "b"]),
    )
    def submit_alike(self, device: int, count: int, ops: int, length: int, base: int, scan: str) -> None:
        """Several at once: limits are reached, and requests queue."""
        name = _pick(list(self.world.schedulers), device)
        for _ in range(count):
            self.world.submit(
                name, [length] * ops, result_bytes=length * ops, priority=Priority(base), scan=scan
            )

    @rule(
        device=INDEX,
        lengths=st.lists(st.sampled_from([1, 4, 20]), min_size=1, max_size=3),
        base=st.integers(-4, 2),
    )
    def start_now(self, device: int, lengths: list[int], base: int) -> None:
        name = _pick([name for name in self.world.schedulers if name in WITHOUT_LINK], device)
        self.world.start_now(name, lengths, result_bytes=sum(lengths), priority=Priority(base))

    @precondition(lambda self: self.world.of_requests())
    @rule(index=INDEX, answers=st.sampled_from([1, 16]), is_late=st.booleans())
    def refuse(self, index: int, answers: int, is_late: bool) -> None:
        self.world.refuse(_pick(self.world.of_requests(), index), answers, is_late=is_late)

    @precondition(lambda self: self.world.grants())
    @rule(index=INDEX, ops=st.integers(1, 4), short=st.integers(0, 9), is_hit=st.booleans())
    def complete(self, index: int, ops: int, short: int, is_hit: bool) -> None:
        grant = _pick(self.world.grants(), index)
        self.world.complete(grant, min(ops, grant.ops_left), short, is_hit=is_hit)

    @precondition(lambda self: self.world.grants())
    @rule(index=INDEX)
    def complete_whole(self, index: int) -> None:
        grant = _pick(self.world.grants(), index)
        self.world.complete(grant, grant.ops_left)

    @precondition(lambda self: any(g.request.is_over for g in self.world.grants()))
    @rule(index=INDEX)
    def forfeit(self, index: int) -> None:
        over = [grant for grant in self.world.grants() if grant.request.is_over]
        self.world.forfeit(_pick(over, index))

    @precondition(lambda self: self.world.grants())
    @rule(index=INDEX)
    def complete_what_cannot_be(self, index: int) -> None:
        """An illegal event raises and changes nothing."""
        grant = _pick(self.world.grants(), index)
        scheduler = self.world.hub.schedulers[_naive(grant.request.label).device]
        for ops, nbytes in ((grant.ops_left + 1, 1), (1, grant.bytes_left + 1), (1, -1), (-1, 1)):
            with pytest.raises(IllegalTransitionError):
                scheduler.complete(grant, ops, nbytes, self.world.now)
        if not grant.request.is_over:
            with pytest.raises(IllegalTransitionError):
                scheduler.forfeit(grant)
        self.world.check()

    @precondition(lambda self: self.world.known)
    @rule(index=INDEX, how=st.sampled_from(["consume", "consume", "cancel", "fail", "drop"]))
    def end(self, index: int, how: str) -> None:
        self.world.end(_pick(self.world.known, index), how)

    @precondition(lambda self: any(_is_complete(naive) for naive in self.world.known))
    @rule(index=INDEX)
    def consume(self, index: int) -> None:
        complete = [naive for naive in self.world.known if _is_complete(naive)]
        self.world.end(_pick(complete, index), "consume")

    @precondition(lambda self: self.world.known)
    @rule(index=INDEX, nbytes=st.integers(0, 60))
    def note_length(self, index: int, nbytes: int) -> None:
        self.world.note_length(_pick(self.world.known, index), nbytes)

    @precondition(lambda self: self.world.known)
    @rule(index=INDEX, base=BASES, position=st.integers(0, 3))
    def raise_priority(self, index: int, base: int, position: int) -> None:
        self.world.raise_priority(_pick(self.world.known, index), base, position)

    @precondition(lambda self: self.world.known)
    @rule(index=INDEX)
    def wait_for(self, index: int) -> None:
        naive = _pick(self.world.known, index)
        if not naive.request.is_speculative:
            self.world.await_(naive)

    @rule(seconds=st.sampled_from([0.25, 1.0, 6.0]))
    def advance(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(ticks=st.integers(1, 8))
    def interrupt(self, ticks: int) -> None:
        """Raise at a call out of the core, in this or a later section."""
        self.world.fuse.left = ticks

    @precondition(lambda self: len(self.world.known) > 4)
    @rule()
    def close(self) -> None:
        self.world.close()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()
            self.world.check_rest()


def _pick(rows: list[Any], index: int) -> Any:
    return rows[index % len(rows)]


def _naive(label: object) -> Naive:
    assert isinstance(label, Naive)
    return label


def _is_complete(naive: Naive) -> bool:
    return naive.request.state is State.COMPLETE


def test_the_core_agrees_with_the_model() -> None:
    run_state_machine_as_test(
        SchedulerMachine,
        settings=settings(
            stateful_step_count=50,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


# -- what the machine found once


def _fill_the_store(world: World) -> None:
    """Two small reads in flight: all that the store takes, so that what is submitted next waits."""
    for _ in range(2):
        _submit(world, -1, "a", [1])


def _submit(world: World, base: int, scan: str, lengths: list[int]) -> int:
    request = {"result_bytes": sum(lengths), "priority": Priority(base), "scan": scan}
    return world.submit("store", lengths, **request).request.seq


def _next_admitted(world: World) -> int:
    """Complete the oldest op in flight and return whose op starts in its place."""
    seen = len(world.log)
    world.complete(world.grants()[0], 1)
    (admitted,) = [seq for event, seq, *_ in world.log[seen:] if event == "admitted"]
    return admitted


def test_a_turn_beside_a_scan_that_waits_for_the_budget_is_a_turn() -> None:
    """The age of the base begins anew, so the next one goes, which has waited for a step's time."""
    world = World(budget=40)
    _fill_the_store(world)
    small = _submit(world, 0, "b", [5])
    _submit(world, 0, "a", [39])
    aged = _submit(world, 1, "a", [5])
    world.advance(6)
    assert _next_admitted(world) == small
    assert _next_admitted(world) == aged
    world.drain()


@pytest.mark.parametrize("has_turn", [True, False])
def test_the_next_op_of_a_started_read_is_a_turn_or_passes_one(has_turn: bool) -> None:
    """Its scan was served less than the one that waits for the budget, or more: only a turn has an age."""
    world = World(budget=40 * TURN_BYTES)
    _fill_the_store(world)
    _submit(world, 0, "a" if has_turn else "c", [10 * TURN_BYTES])
    started = _submit(world, 0, "b", [5 * TURN_BYTES] * 3)
    _submit(world, 0, "a", [31 * TURN_BYTES])
    aged = _submit(world, 2, "a", [5])
    _next_admitted(world)
    world.advance(6)
    assert _next_admitted(world) == started
    world.advance(5)
    assert _next_admitted(world) == started
    assert _next_admitted(world) == (aged if has_turn else started)
    world.drain()


# -- same seed, same trace


def play(seed: int, steps: int = 400) -> list[tuple[Any, ...]]:
    """Return the trace of a random program of `steps` commands."""
    return played(seed, steps).log


def played(seed: int, steps: int) -> World:
    """Return the world after it."""
    draw = random.Random(seed)
    world = World(budget=draw.choice([0, 150, 1000]), process_limit=draw.choice([0, 3]))
    for _ in range(steps):
        _step(world, draw)
    world.drain()
    world.check_rest()
    return world


def _step(world: World, draw: random.Random) -> None:
    roll = draw.random()
    grants = world.grants()
    if roll < 0.4:
        lengths = [draw.randint(1, 60) for _ in range(draw.randint(1, 9))]
        device = draw.choice(DEVICES)
        naive = world.submit(
            device,
            lengths,
            result_bytes=sum(lengths),
            priority=Priority(draw.randint(-1, 1), draw.randint(0, 9)),
            scan=draw.choice("abc"),
            is_speculative=draw.random() < 0.2,
            series_ops=draw.choice([1, 1, 2]) if device in WITHOUT_LINK else 1,
        )
        if not naive.request.is_speculative:
            world.await_(naive)
    elif roll < 0.45:
        lengths = [draw.randint(1, 20) for _ in range(draw.randint(1, 3))]
        device, priority = draw.choice(WITHOUT_LINK), Priority(draw.randint(-4, 1))
        world.start_now(device, lengths, result_bytes=sum(lengths), priority=priority)
    elif roll < 0.75 and grants:
        world.complete(draw.choice(grants), 1)
    elif roll < 0.95 and world.known:
        world.end(draw.choice(world.known), draw.choice(["consume", "cancel", "drop"]))
    else:
        world.advance(draw.choice([0.25, 3.0]))


@pytest.mark.parametrize("seed", range(5))
def test_same_seed_same_trace(seed: int) -> None:
    trace = play(seed)
    assert trace == play(seed)
    assert len({event for event, *_ in trace}) == 4


def test_devices_take_turns_at_the_budget() -> None:
    """What the model checks there does come up."""
    world = played(6, 400)  # with a budget, and without a limit of the process's, which is scarce as well
    assert world.hub.process_io_limit == 0
    assert world.turns_between_devices > 0


def test_the_trace_does_not_depend_on_the_hashes_of_strings() -> None:
    """Scans are looked up by hash: their order must not come from it."""
    code = "from sim.test_scheduler_machine import play; print(play(7))"
    traces = {_output_of(code, hash_seed) for hash_seed in ("1", "2")}
    assert len(traces) == 1
    assert len(traces.pop()) > 1000


def _output_of(code: str, hash_seed: str) -> str:
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
