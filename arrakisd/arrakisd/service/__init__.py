"""Every operation of the daemon, free of transports.

A transport looks a method up in `arrakis_rpc.operations.DAEMON` and hands over its
parameters and a `Call`; it gets a result to send. The operations are grouped by what they
are about, one module and one class each. A handler is named like its operation, with an
underscore for the dot; that table says in which states it is legal and what it raises.
"""

from .call import Call
from .dispatch import Service

__all__ = ["Call", "Service"]
