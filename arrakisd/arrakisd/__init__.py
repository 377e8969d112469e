"""The daemon: supervises each microVM in a scope of its own.

Layers, each knowing only those to its left (enforced by import-linter)::

    config, states, paths  <-  host (vmm, memory, disks, checksums)  <-  store, agent
        <-  machine  <-  supervisor  <-  service  <-  rpc_session
        <-  rpc_server  <-  daemon
"""

from importlib.metadata import version

__version__ = version("arrakis")
