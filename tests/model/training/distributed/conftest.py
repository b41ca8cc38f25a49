"""The small run and the ranks that this folder's tests and the scripts they start both import."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.append(str(HERE.parents[2]))  # last: beside `tests/model` there is the package
