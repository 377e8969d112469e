"""One guest, as its agent tells of it: the session, who it is to be, what it can be asked."""
