"""Retries: whether an op that failed is tried again, and after how long. One for each store.

1. The wait doubles with each attempt, up to a cap, and is drawn from all of it (*full jitter*), so that ops
   which failed together do not come back together.
2. ``Retry-After`` is the least wait; the jitter comes on top, for many were told the same.
3. An attempt that brought something of an op to keep does not count: a long one over a slow link takes as
   many as it takes.
4. Each retry takes a token from a *budget*; successes put fractions of one back. With a few faults it never
   runs dry. In an outage it does, and then only as many requests go out as successes have paid for: what
   fails is not multiplied.
5. A store is *silent* when an op has used up its attempts, and twice as many failed in a row: until
   something succeeds, each op is tried once. A batch on a store that is gone fails as fast as one op.

Every attempt of reads alone is safe to repeat; what may be repeated at all is the backend's `Verdict`.

Sources: Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015; Finagle's `RetryBudget`
(a deposit for each request, a withdrawal for each retry).

Threading: all methods under the hub's lock. It knows no clock and draws no random numbers: it is given them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

if TYPE_CHECKING:
    from headrace.types import Verdict

RETRIES = 10
"""Attempts after the first one: on average four seconds of a store that does not answer."""

BASE_S = 0.1
CAP_S = 1.0
"""A short cap: when a storm has passed, nothing sleeps for longer than this."""

LONGEST_RETRY_AFTER_S = 60.0
"""A store that wants to be left alone for longer is an error now."""

REFILL = 0.15
"""Tokens for each success: with the reserve, 10,000 ops are at most 12,000 requests."""

RESERVE = 500.0
"""Tokens at the start, and at most: what a short outage may cost."""


_SILENCE = 2
"""Failures in a row for each attempt of an op that gives up, before the store counts as silent."""


class Attempts:
    """The attempts at one op, or at the ops of one call."""

    __slots__ = ("_kept", "in_vain")

    def __init__(self) -> None:
        self.in_vain = 0
        """Those in a row that brought nothing, with the one that is under way."""
        self._kept: dict[int, int] = {}

    def begin(self) -> None:
        """Count one that begins."""
        self.in_vain += 1

    def note_kept(self, op: int, nbytes: int) -> None:
        """Note how much of an op is there after a failed attempt: with more than before, it counts anew."""
        if nbytes > self._kept.get(op, 0):
            self._kept[op] = nbytes
            self.in_vain = 1


class Retries:
    """The retries of one store.

    Parameters
    ----------
    retries
        Attempts after the first one; 0 for none.
    base_s, cap_s
        Longest wait before the second attempt, and before any.
    reserve, refill
        The budget: tokens at the start and at most, and tokens for each success.
    """

    __slots__ = (
        "_failures", "base_s", "cap_s", "granted", "is_silent", "refill", "refused", "reserve", "retries",
        "tokens",
    )  # fmt: skip

    def __init__(
        self,
        retries: int = RETRIES,
        *,
        base_s: float = BASE_S,
        cap_s: float = CAP_S,
        reserve: float = RESERVE,
        refill: float = REFILL,
    ) -> None:
        self.retries = retries
        self.base_s = base_s
        self.cap_s = cap_s
        self.reserve = reserve
        self.refill = refill
        self.tokens = reserve
        self.granted = 0
        self.refused = 0
        self.is_silent = False
        self._failures = 0  # in a row

    def next_delay(self, attempt: int, verdict: Verdict, chance: float) -> float | None:
        """Decide on an op whose attempt failed.

        Parameters
        ----------
        attempt
            Its number, as `Attempts` counts them: the first is 1.
        chance
            A number in ``[0, 1)``, drawn anew for each call.

        Returns
        -------
        float or None
            Seconds to wait before attempt ``attempt + 1``; None to give up.
        """
        if not verdict.is_retryable:
            return None
        self._failures += 1
        if attempt > self.retries:
            self.is_silent = self.is_silent or self._failures > _SILENCE * attempt
        least_s = verdict.retry_after_s or 0.0
        is_spent = attempt > self.retries or self.tokens < 1 or self.is_silent
        if is_spent or least_s > LONGEST_RETRY_AFTER_S:
            self.refused += 1
            return None
        self.tokens -= 1
        self.granted += 1
        longest_s = min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 60))
        return least_s + chance * longest_s

    def note_success(self, ops: int) -> None:
        """Refill the budget for `ops` that succeeded."""
        if ops:
            self._failures, self.is_silent = 0, False
        self.tokens = min(self.reserve, self.tokens + self.refill * ops)

    @override
    def __repr__(self) -> str:
        return f"<Retries {self.granted} granted, {self.refused} refused, {self.tokens:.0f} tokens left>"
