"""What the daemon writes of itself, and by which request."""
