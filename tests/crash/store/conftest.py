"""The crash tests of the store use the row maker of its unit tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "store"))
