"""Machines: one's whole life, all of them together, and what is made ready for those to come."""
