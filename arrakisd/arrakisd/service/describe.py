"""How stored things are described to clients."""

from __future__ import annotations

from arrakis_rpc.daemon_api import SnapshotInfo, TemplateInfo

from ..storage.manifest import Manifest


def snapshot(manifest: Manifest) -> SnapshotInfo:
    """Describe a snapshot."""
    return SnapshotInfo(
        id=manifest.id,
        vm=manifest.vm,
        template=manifest.template,
        parent=manifest.parent,
        label=manifest.label,
        created=manifest.created,
        bytes=manifest.bytes,
        memory_mib=manifest.shape.memory_mib,
        vcpus=manifest.shape.vcpus,
        changed_pages=manifest.changed_pages,
        pause=manifest.pause,
    )


def template(manifest: Manifest) -> TemplateInfo:
    """Describe a template."""
    shape = manifest.shape
    return TemplateInfo(
        id=manifest.id,
        image=shape.image,
        image_digest=shape.image_digest,
        vcpus=shape.vcpus,
        memory_mib=shape.memory_mib,
        disk_mib=shape.disk_mib,
        vmm=f"{shape.vmm} {shape.vmm_version}",
        accelerator=shape.accelerator,
        created=manifest.created,
        boot=manifest.boot,
        bytes=manifest.bytes,
    )
