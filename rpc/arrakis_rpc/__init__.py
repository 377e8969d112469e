"""The protocol that the SDK, the daemon and the guest agent share.

Everything here is sans-IO: bytes go in, events come out, and no socket, thread or
event loop is known. From the wire upwards:

``framing``     length-prefixed msgpack frames, with caps on size and nesting
``envelope``    JSON-RPC 2.0 requests, notifications, results and errors
``connection``  one end of a conversation: calls, cancellation, streams with credit
``resync``      how two ends find each other again on a byte stream that was cut
``converter``   strict structuring of parameters and results
``operations``  the list of everything that can be called
"""

PROTOCOL_VERSION = 1
