"""Hypothesis profiles of the test suite, loaded by ``conftest``.

``HYPOTHESIS_PROFILE`` names the one in force: ``dev`` (the default), ``ci`` (the default where
``CI`` is set; the same examples each time, so that a red run can be repeated) or ``nightly`` (many
examples). None has a deadline: a shared machine stalls for seconds, and no test asserts a timing.
"""

import os

from hypothesis import HealthCheck, settings

_STEADY = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("dev", max_examples=60, **_STEADY)
settings.register_profile("ci", max_examples=100, derandomize=True, database=None, print_blob=True, **_STEADY)
settings.register_profile("nightly", max_examples=2000, print_blob=True, **_STEADY)


def load_profile() -> str:
    """Load the profile the environment asks for and return its name."""
    name = os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
    settings.load_profile(name)
    return name
