"""The guest agent: what the daemon talks to inside a microVM.

It runs as root under systemd, is the callee of one `arrakis_rpc` conversation over a
virtio-serial port, and survives whatever the other end does. Only the standard library
and `arrakis_rpc` are imported. From the wire upwards:

``poller``     readiness of file descriptors, edge-triggered
``port``       the byte stream to the host, with a bounded output queue
``sessions``   where a session begins and ends in that byte stream
``calls``      dispatch, the failure boundary, and the byte streams of one call
``spawn``, ``process``, ``pumps``, ``commands``    running programs
``paths``, ``files``, ``transfer``                 working on files
``identity``, ``kernel``, ``network``              becoming another machine
``health``     how the guest is
"""

__version__ = "0.1.0"
