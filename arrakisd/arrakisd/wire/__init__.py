"""The protocol on a stream, from either end."""
