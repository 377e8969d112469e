"""HTTP: the REST API of the Go program, and all that the protocol offers.

The parts, from the outside: `server` listens, with hypercorn; `front` and `guards` let in who
may ask; `exchange` is one request; `app` reads it, and one of the ``..._routes`` has it done by
the service.
"""

from .server import HttpServer, open_http_server

__all__ = ["HttpServer", "open_http_server"]
