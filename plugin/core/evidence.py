"""What a trial of the window has shown so far: the mean of its pairs of legs, and how sure it is.

A pair is two neighbouring legs, one under each limit; its *gain* is what the larger limit brought beyond what
was asked of it. Few pairs say little of their own noise, so what earlier trials learned counts as some more.

Source: B. P. Welford, "Note on a method for calculating corrected sums of squares and products",
Technometrics 4(3), 1962.

Pure functions of what is added: no clock, no lock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_PRIOR_NOISE = 0.2  # of log(rate) over one slice, before any was seen
_LEAST_NOISE = 0.1  # a quiet past does not make the next jolt a proof
_PRIOR_PAIRS = 2.0


@dataclass(frozen=True, slots=True)
class Leg:
    """What one leg measured.

    Attributes
    ----------
    limit : int
        Units that were allowed in flight.
    slices : float
        How many of the leg's largest slice its units are.
    log_rate : float
        Of units a second.
    log_in_flight : float
        Of units in flight, the mean of its completions.
    """

    limit: int
    slices: float
    log_rate: float
    log_in_flight: float


class Evidence:
    """Mean and error of the pairs of one trial; learns from trial to trial how noisy slices are."""

    __slots__ = ("_noise", "_per_slice", "_squares", "count", "mean")

    def __init__(self) -> None:
        self._noise = _PRIOR_NOISE**2  # variance of log(rate) over one slice
        self.reset()

    def reset(self) -> None:
        """Forget the pairs, keep their noise."""
        self.count = 0
        self.mean = self._squares = 0.0
        self._per_slice = 1.0

    def add(self, gain: float, one: Leg, two: Leg) -> None:
        """Add the gain of one pair (Welford's update)."""
        self.count += 1
        delta = gain - self.mean
        self.mean += delta / self.count
        self._squares += delta * (gain - self.mean)
        self._per_slice = 1 / one.slices + 1 / two.slices

    def is_beyond(self, errors: float) -> bool:
        """Whether the mean is at least so many standard errors from zero."""
        return abs(self.mean) > errors * self.error()

    def error(self) -> float:
        """Return the standard error of the mean.

        Neighbouring pairs share a leg, which doubles the variance of their mean.
        """
        return math.sqrt(2 * self._variance() / self.count)

    def conclude(self) -> None:
        """Learn the noise of the pairs, then forget them."""
        if self.count > 1:
            learned = (self._noise + self._variance() / self._per_slice) / 2
            self._noise = max(_LEAST_NOISE**2, learned)
        self.reset()

    def _variance(self) -> float:
        prior = _PRIOR_PAIRS * self._noise * self._per_slice
        return (prior + self._squares) / (self.count - 1 + _PRIOR_PAIRS)
