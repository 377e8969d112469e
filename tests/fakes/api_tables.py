"""What the drivers use of two APIs: endpoints, fields, types. Nothing else passes in the tests.

A field that is required has a "!" behind its name; a set has the values that are allowed. An
official description, where one is at hand, tells whether these are right: see
tests/vmm/test_vmm_api_tables.py.
"""

from __future__ import annotations

from typing import Any

NIC = {"id": str, "mac": str, "fds": [int]}

ZONE = {"id!": str, "size!": int, "file": str, "shared": bool, "prefault": bool}

VM_CONFIG = {
    "payload!": {"kernel": str, "initramfs": str, "cmdline": str},
    "cpus": {"boot_vcpus!": int, "max_vcpus!": int},
    "memory": {"size!": int, "zones": [ZONE]},
    "disks": [{"id": str, "path": str, "readonly": bool, "image_type": {"Raw", "Qcow2"}}],
    "net": [NIC],
    "vsock": {"id": str, "cid!": int, "socket!": str},
    "rng": {"src!": str},
    "serial": {"mode!": {"Off", "Null", "Tty", "File", "Socket"}},
    "console": {"mode!": {"Off", "Null", "Tty", "File", "Socket"}},
    "landlock_enable": bool,
    "landlock_rules": [{"path!": str, "access!": str}],
}

CLOUD_HYPERVISOR: dict[str, Any] = {
    "GET /vmm.ping": None,
    "PUT /vm.create": VM_CONFIG,
    "PUT /vm.add-net": NIC,
    "PUT /vm.boot": None,
    "PUT /vm.pause": None,
    "PUT /vm.resume": None,
    "PUT /vm.snapshot": {"destination_url": str},
    "PUT /vm.restore": {
        "source_url!": str,
        "prefault": bool,
        "net_fds": [{"id!": str, "num_fds!": int}],
    },
}

FIRECRACKER: dict[str, Any] = {
    "GET /version": None,
    "PUT /machine-config": {"vcpu_count!": int, "mem_size_mib!": int},
    "PUT /boot-source": {"kernel_image_path!": str, "initrd_path": str, "boot_args": str},
    "PUT /drives/{drive_id}": {
        "drive_id!": str,
        "path_on_host": str,
        "is_root_device!": bool,
        "is_read_only": bool,
    },
    "PUT /network-interfaces/{iface_id}": {
        "iface_id!": str,
        "host_dev_name!": str,
        "guest_mac": str,
    },
    "PUT /vsock": {"guest_cid!": int, "uds_path!": str},
    "PUT /entropy": {},
    "PUT /actions": {"action_type!": {"InstanceStart"}},
    "PATCH /vm": {"state!": {"Paused", "Resumed"}},
    "PUT /snapshot/create": {
        "snapshot_type": {"Full", "Diff"},
        "snapshot_path!": str,
        "mem_file_path!": str,
    },
    "PUT /snapshot/load": {
        "snapshot_path!": str,
        "mem_backend": {"backend_type!": {"File", "Uffd"}, "backend_path!": str},
        "resume_vm": bool,
        "network_overrides": [{"iface_id!": str, "host_dev_name!": str}],
    },
}

# What the real programs take, in ancillary data's company, and their descriptions leave out.
UNDESCRIBED = {"net_fds", "fds"}


def problem(schema: Any, value: Any, where: str = "the body") -> str | None:
    """Tell what of a request's body is not as the table says; None if all is."""
    if schema is None:
        return None if value is None else f"{where} should be empty"
    if isinstance(schema, set):
        return None if value in schema else f"{where} is {value!r}"
    if isinstance(schema, type):
        return None if type(value) is schema else f"{where} is {value!r}, no {schema.__name__}"
    if isinstance(schema, list):
        if not isinstance(value, list):
            return f"{where} is no list"
        found = (problem(schema[0], one, f"{where}[{n}]") for n, one in enumerate(value))
        return next(filter(None, found), None)
    if not isinstance(value, dict):
        return f"{where} is no object"
    fields = {name.rstrip("!"): inner for name, inner in schema.items()}
    needed = {name.rstrip("!") for name in schema if name.endswith("!")}
    if wrong := (value.keys() - fields.keys()) | (needed - value.keys()):
        return f"{where}: {sorted(wrong)} unknown or missing"
    found = (problem(fields[name], inner, f"{where}.{name}") for name, inner in value.items())
    return next(filter(None, found), None)
