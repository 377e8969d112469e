"""What a daemon keeps beside its VMs: snapshots, images, templates."""

from __future__ import annotations

import os
from collections.abc import Mapping

from arrakis_rpc.daemon_api import (
    ImageInfo,
    ImageList,
    SnapshotInfo,
    SnapshotList,
    TemplateInfo,
    TemplateList,
)
from arrakis_rpc.errors import InvalidParamsError

from ._client import Client, OnProgress, without_none
from .context import tar_context


class Snapshots:
    """The snapshots of a daemon. Every method raises `ConnectionLostError` without one."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[SnapshotInfo]:
        """Give all snapshots, oldest first."""
        found: SnapshotList = self._client.call("snapshot.list")
        return found.snapshots

    def info(self, snapshot_id: str) -> SnapshotInfo:
        """Describe one snapshot. Raises `NotFoundError`."""
        info: SnapshotInfo = self._client.call("snapshot.info", {"id": snapshot_id})
        return info

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
        """Delete an image. Raises `NotFoundError`, and `InvalidStateError` if it is in use."""
        self._client.call("image.delete", {"name": name})


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
        progress: OnProgress | None = None,
    ) -> TemplateInfo:
        """Boot a shape once and keep it, so that its later starts are restores.

        None takes the daemon's default. Raises as `SandboxManager.start_sandbox` does.
        """
        shape = without_none(image=image, vcpus=vcpus, memory_mib=memory_mib, disk_mib=disk_mib)
        template: TemplateInfo = self._client.call("template.build", shape, progress=progress)
        return template

    def delete(self, template_id: str) -> None:
        """Delete a template; the next start of its shape boots again.

        Raises `NotFoundError`, and `InvalidStateError` while a snapshot or a VM stands on it.
        """
        self._client.call("template.delete", {"id": template_id})
