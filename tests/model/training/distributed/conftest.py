"""The small run that this folder's tests and the ranks they start both import."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
