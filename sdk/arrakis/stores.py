"""What a daemon keeps beside its VMs: snapshots, images, templates, tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from arrakis_rpc.connection import MAX_CHUNK, DataReceived
from arrakis_rpc.daemon_api import (
    ImageInfo,
    ImageList,
    SnapshotDifference,
    SnapshotImported,
    SnapshotInfo,
    SnapshotList,
    TemplateInfo,
    TemplateList,
    TokenCreated,
    TokenInfo,
    TokenList,
    VmList,
)
from arrakis_rpc.errors import InvalidParamsError

from ._client import Client, OnProgress, report, without_none
from .context import tar_context
from .tree import TreeNode, grow
from .trees import replaced


class Snapshots:
    """The snapshots of a daemon. Every method raises `ConnectionLostError` without one."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[SnapshotInfo]:
        """Give all snapshots, oldest first."""
        pages: Iterator[SnapshotList] = self._client.pages("snapshot.list")
        return [snapshot for page in pages for snapshot in page.snapshots]

    def tree(self) -> Sequence[TreeNode]:
        """Give the trees of templates, their snapshots, and the machines at their places.

        They are put together of several answers: what changes meanwhile may be missing.
        """
        templates: TemplateList = self._client.call("template.list")
        vms: Iterator[VmList] = self._client.pages("vm.list")
        machines = [vm for page in vms for vm in page.vms]
        return grow(templates.templates, self.list(), machines)

    def info(self, snapshot_id: str) -> SnapshotInfo:
        """Describe one snapshot. Raises `NotFoundError`."""
        info: SnapshotInfo = self._client.call("snapshot.info", {"id": snapshot_id})
        return info

    def diff(self, before: str, after: str) -> SnapshotDifference:
        """Tell what is different in ``after``; each is the id of a snapshot or a template.

        ``files`` (``path``, ``change``: added, removed or changed, ``kind``, ``size``) and
        ``processes`` (``pid``, ``change``, ``command``), and whether that is ``complete``.
        Both are woken for it, unseen and without a network. Only what is on disk is
        compared, and of files not their times. Raises `NotFoundError`, `GuestError`, and as
        `SandboxManager.restore` does.
        """
        pair = {"before": before, "after": after}
        difference: SnapshotDifference = self._client.call("snapshot.diff", pair)
        return difference

    def export(
        self,
        snapshot_id: str,
        path: str | os.PathLike[str],
        *,
        progress: OnProgress | None = None,
    ) -> None:
        """Write a snapshot, its ancestors and its template into one file, whole or not at all.

        Its image is not in it. A device or a pipe is written into as the data comes. Raises
        `NotFoundError`, `IntegrityError` when the stored data is damaged, `OSError` for the file.
        """
        call = self._client.open("snapshot.export", {"id": snapshot_id})
        try:
            with replaced(Path(path)) as file:
                while (item := call.take()) is not None:
                    if isinstance(item, DataReceived):
                        file.write(item.data)
                    else:
                        report(item, progress)
                call.result()
        finally:
            call.close()

    def import_(
        self, path: str | os.PathLike[str], *, progress: OnProgress | None = None
    ) -> SnapshotImported:
        """Take what `export` wrote, also of another daemon; give the snapshot's ``id``.

        Those that are here already (``present``) stay. Raises `UnsupportedError` where they
        could not be woken: their image is not here, or hypervisor, its version, accelerator
        or processor are other ones; `AlreadyExistsError` for another snapshot of that id,
        `IntegrityError` for a damaged file, `ExhaustedError` when the disk is full.
        """
        with open(path, "rb") as file:  # noqa: PTH123
            pieces = iter(lambda: file.read(MAX_CHUNK), b"")
            imported: SnapshotImported = self._client.call(
                "snapshot.import", {}, progress=progress, body=("data", pieces)
            )
        return imported

    def delete(self, snapshot_id: str, *, recursive: bool = False) -> None:
        """Delete a snapshot, with ``recursive`` also all that descend from it.

        Those that descend from it stay whole otherwise. Raises `NotFoundError`.
        """
        self._client.call("snapshot.delete", {"id": snapshot_id, "recursive": recursive})


class Images:
    """The images of a daemon. Every method raises `ConnectionLostError` without one."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[ImageInfo]:
        """Give all images by name."""
        found: ImageList = self._client.call("image.list")
        return found.images

    def build(
        self,
        context: str | os.PathLike[str],
        dockerfile: str = "Dockerfile",
        *,
        name: str,
        build_args: Mapping[str, str] | None = None,
        progress: OnProgress | None = None,
    ) -> ImageInfo:
        """Build an image from a directory and a Dockerfile, whose path is relative to it.

        The directory is streamed to the daemon without what its ``.dockerignore``
        excludes, and with one fixed time in place of the files' own. Raises
        `ImageBuildError` when a step fails, `ExhaustedError` when the disk is full,
        `UnsupportedError` when the daemon's host has no builder, `OSError` for a local file.
        """
        directory = os.fspath(context)
        if not os.path.isfile(os.path.join(directory, dockerfile)):  # noqa: PTH113, PTH118 -- as os.fspath gives it
            raise InvalidParamsError(f"there is no {dockerfile} in {directory}")
        image: ImageInfo = self._client.call(
            "image.build",
            {"name": name, "dockerfile": dockerfile, "build_args": dict(build_args or {})},
            progress=progress,
            body=("context", tar_context(directory, dockerfile)),
        )
        return image

    def delete(self, name: str) -> None:
        """Delete an image. What stands on it keeps its files. Raises `NotFoundError`."""
        self._client.call("image.delete", {"name": name})

    # Not list[ImageInfo]: in this class that is the method above.
    def prune(self, *, dry_run: bool = False) -> Sequence[ImageInfo]:
        """Delete images without a name that nothing needs; give what was deleted.

        An image loses its name when one of that name is built anew, or the name deleted. With
        ``dry_run`` nothing is deleted, only given. A nameless image is called by its digest.
        """
        pruned: ImageList = self._client.call("image.prune", {"dry_run": dry_run})
        return pruned.images


class Templates:
    """The templates of a daemon. Every method raises `ConnectionLostError` without one."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[TemplateInfo]:
        """Give all templates, oldest first."""
        found: TemplateList = self._client.call("template.list")
        return found.templates

    def build(
        self,
        image: str | None = None,
        *,
        vcpus: int | None = None,
        memory_mib: int | None = None,
        disk_mib: int | None = None,
        vmm: str | None = None,
        progress: OnProgress | None = None,
    ) -> TemplateInfo:
        """Boot a shape once and keep it, so that its later starts are restores.

        None takes the daemon's default. Raises as `SandboxManager.start_sandbox` does.
        """
        shape = without_none(
            image=image, vcpus=vcpus, memory_mib=memory_mib, disk_mib=disk_mib, vmm=vmm
        )
        template: TemplateInfo = self._client.call("template.build", shape, progress=progress)
        return template

    def delete(self, template_id: str) -> None:
        """Delete a template; the next start of its shape boots again.

        Raises `NotFoundError`, and `InvalidStateError` while a snapshot or a VM stands on it.
        """
        self._client.call("template.delete", {"id": template_id})


class Tokens:
    """What clients that come by HTTP are let in with.

    Only those who use the daemon's Unix socket may do any of this: every method raises
    `AccessDeniedError` elsewhere, and `ConnectionLostError` without a daemon.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, name: str) -> str:
        """Make a token, and give it: it cannot be asked for again. Raises `AlreadyExistsError`."""
        made: TokenCreated = self._client.call("token.create", {"name": name})
        return made.token

    def list(self) -> list[TokenInfo]:
        """Give all tokens by name, when they were made and last used; not the secrets."""
        found: TokenList = self._client.call("token.list")
        return found.tokens

    def revoke(self, name: str) -> None:
        """Let nobody in with a token any more, and cut off who is. Raises `NotFoundError`."""
        self._client.call("token.revoke", {"name": name})
