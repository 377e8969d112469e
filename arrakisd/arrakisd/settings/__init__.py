"""What can be set, and where everything under the state directory is."""
