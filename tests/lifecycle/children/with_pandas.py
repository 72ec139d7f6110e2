"""Runs another child, whose name and arguments follow, with the real pandas: see ``pandas.py``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

sys.path.append(sys.path.pop(0))
import pandas as pd

assert pd.DataFrame
sys.argv = sys.argv[1:]
runpy.run_path(str(Path(__file__).with_name(sys.argv[0])), run_name="__main__")
