"""Which hypervisor a sandbox is started under, when somebody says so."""

from __future__ import annotations

import pytest

from arrakis import SandboxManager
from arrakis_rpc.errors import NotFoundError, UnsupportedError

pytestmark = pytest.mark.vm


def test_hypervisor_of_a_start(manager: SandboxManager) -> None:
    """One that is named is used if it can be; a snapshot is only woken by the one that saved it."""
    [template] = manager.templates.list()
    usual = template.vmm.split()[0]
    with manager.start_sandbox("named", vmm=usual) as sandbox:
        assert sandbox.info()["template"] == template.id
        snapshot = sandbox.snapshot()
    with pytest.raises(NotFoundError, match="there is no VMM 'bochs'"):
        manager.start_sandbox("other", vmm="bochs")
    with pytest.raises(UnsupportedError, match="firecracker"):
        manager.start_sandbox("other", vmm="firecracker")
    wish = {"name": "other", "snapshot": snapshot, "vmm": "firecracker"}
    with pytest.raises(UnsupportedError, match="firecracker was asked for") as caught:
        manager._client.call("vm.start", wish)
    error = caught.value
    assert (error.state, str(error.required).split()[0]) == ("firecracker", usual)
    assert "only be woken by the hypervisor that saved it" in (error.hint or "")
    assert manager.list_all() == []
