"""The scripted daemon as a fixture."""

from scripted_daemon import scripted as scripted
