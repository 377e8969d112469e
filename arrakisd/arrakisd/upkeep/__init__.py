"""What keeps the daemon well, and tells those who look after it."""
