"""The scripted daemon of the SDK's tests as a fixture."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "sdk"))

from scripted_daemon import scripted as scripted
