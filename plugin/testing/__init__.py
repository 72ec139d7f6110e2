"""For tests of code that uses headrace, and of third parties' backends; needs pytest.

* `BackendTests`: the conformance suite that every backend passes; subclass it.
* `current_permit`: which admitted op the calling code performs, for recording filesystems.
"""

import pytest

# The suite's assertions are a third party's test output: they should say what differed.
pytest.register_assert_rewrite("headrace.testing.backend_tests", "headrace.testing.perform")

from headrace.drivers.permit import Permit, current_permit  # noqa: E402
from headrace.testing.backend_tests import BackendTests  # noqa: E402

__all__ = ["BackendTests", "Permit", "current_permit"]
