"""The modes that behaviour tests run under, as options of the constructor."""

from __future__ import annotations

import os

MODES = ("lite", "standard", "off")
SCHEDULED = ("lite", "standard")
OPTIONS: dict[str, dict[str, object]] = {
    "lite": {"scheduler": "lite"},
    "standard": {"scheduler": "standard"},
    "off": {"scheduler": "off"},
    "lite-serialized": {"scheduler": "lite", "serialize": True},
    "standard-serialized": {"scheduler": "standard", "serialize": True},
}

BUCKET = "headrace-tests"
"""The bucket that the `s3_server` fixture makes; here, where tests can import it."""

ENGINES = ("obstore", "fsspec")
"""Those that read object stores."""

IS_CLOUD_AT_FULL_SIZE = "HEADRACE_TEST_CLOUD" in os.environ
