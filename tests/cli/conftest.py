"""The scripted daemon of the SDK's tests, and the command line as fixtures."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "sdk"))

from cli_harness import arrakis as arrakis
from scripted_daemon import scripted as scripted
from terminal_harness import terminal as terminal
