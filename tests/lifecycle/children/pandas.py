"""Stands in for pandas, and is none: Arrow goes on without it.

Arrow imports pandas where it is installed, as soon as it turns a value of Python's into one of its own, which
``import pyarrow.dataset`` does. A hundred children would take a second each for it. A child's folder comes
first in where it looks for modules; those that want the real one put it last.
"""

raise ModuleNotFoundError("pandas is not for children", name="pandas")
