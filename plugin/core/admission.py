"""The rules of admission, each a named predicate with the reason it exists.

`can_reserve` is I2: a demand request reserves its whole result once. The four exemptions below it
each prevent a deadlock that is written over them; speculation has no exemption and is dropped
first (I7).

A head that may not reserve holds back those behind it, or a large read would never get its turn.
Two kinds pass it all the same, or the reads that must end before its turn comes never would
(`pick_passing`).

Threading: all functions are called under the hub's lock and change nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.core.budget import ByteBudget
    from headrace.core.request import Request

SPECULATIVE_SHARE = 2
"""Speculation may fill one part in so many of each limit, and only while no demand is queued (I7)."""


def can_reserve(request: Request, budget: ByteBudget, in_flight_ops: int) -> bool:
    """Whether the reservation of `request` is granted now."""
    if budget.fits(request.result_bytes):
        return True
    if request.is_speculative:
        return False
    return (
        is_unlimited(budget)
        or is_most_urgent(request, budget)
        or is_sibling(request, budget)
        or is_stuck(request, in_flight_ops)
    )


def is_unlimited(budget: ByteBudget) -> bool:
    """Budget 0 is no limit.

    Deadlock prevented: taken literally, nothing would ever fit into a budget of 0 bytes.
    """
    return budget.limit_bytes == 0


def is_most_urgent(request: Request, budget: ByteBudget) -> bool:
    """Whether the request is more urgent than all demand that holds a reservation, or all who do.

    Deadlock prevented: the consumer reads in another order than the scheduler admitted; what it waits for
    is behind results that it will only take afterwards. Those held are less urgent, so they wait their
    turn, and this one passes.

    *Strictly* more urgent: among equals the queue is FIFO, the holders came first, and a consumer slower
    than the storage would otherwise never be held back at all. Equals that really wait are `is_stuck`.
    """
    least = budget.least_of_demand() or budget.least_priority()
    return least is not None and request.priority < least


def is_sibling(request: Request, budget: ByteBudget) -> bool:
    """Another part of the same read, which its consumer needs whole, holds a reservation.

    Deadlock prevented: chunks of one wide read that spans devices; the first part is held until the last
    arrives, and the last would wait for the first to be released.
    """
    return request.group is not None and budget.is_group_holding(request.group)


def is_stuck(request: Request, in_flight_ops: int) -> bool:
    """Somebody waits for the request, and no op is in flight on its device.

    Deadlock prevented: all reservations belong to results that are ready and unread, and the thread that
    would read them is the one that waits here. Other devices are no reason to wait: theirs may be busy for
    as long as others read, or hold an op that never ends, and neither frees what this thread holds.
    """
    return request.is_awaited and in_flight_ops == 0


def is_behind_speculation(request: Request, budget: ByteBudget, speculative_bytes: int) -> bool:
    """Whether it would fit but for reservations of speculation, alone if it is larger than the budget.

    What demand holds is in its way else, and dropping what was read ahead would not help it.
    """
    demand_bytes = budget.reserved_bytes - speculative_bytes
    return demand_bytes == 0 or demand_bytes + request.result_bytes <= budget.limit_bytes


def pick_passing(
    head: Request,
    started: Iterable[Request],
    first_awaited: Request | None,
    budget: ByteBudget,
    in_flight_ops: int,
) -> Request | None:
    """Return the request that goes on although `head`, before it, waits for the budget.

    One that was admitted in part takes nothing more of the budget. Deadlock prevented: scans take
    turns, the head of the next one waits for this one's reservation, and this one waits behind it.

    Else the first of those that somebody waits for, if it `is_stuck`. Deadlock prevented: the head
    belongs to a read nobody asks for yet, and the thread that would free the budget waits for one behind
    it. While nobody waits for the head it passes beside others, too, if it fits: the head may be in the way
    for as long as its consumer likes.
    """
    found = [r for r in started if r.is_waiting and r.is_speculative <= head.is_speculative]
    if found:
        return min(found, key=lambda r: (r.priority, r.seq))
    if first_awaited is None or in_flight_ops == 0:
        return first_awaited
    # One that does not fit holds back those after it, as every head does.
    return first_awaited if not head.is_awaited and budget.fits(first_awaited.result_bytes) else None
