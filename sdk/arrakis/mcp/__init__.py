"""A server of the Model Context Protocol: sandboxes as tools for a language model.

Needs the extra ``arrakis[mcp]``. Nothing outside of this package imports it before it is
asked for, and nothing outside of it imports ``mcp``. `build_server` in `.server` makes the
server, `.serving` runs it, `.tools` has what a model can do, `.jobs` how that is cancelled.
"""
