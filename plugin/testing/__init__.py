"""For tests of code that uses headrace, and of third parties' backends.

* `BackendTests`: the conformance suite that every backend passes; subclass it.
* `current_permit`: which admitted op the calling code performs, for recording filesystems.
"""

from headrace.drivers.permit import Permit, current_permit
from headrace.testing.backend_tests import BackendTests

__all__ = ["BackendTests", "Permit", "current_permit"]
