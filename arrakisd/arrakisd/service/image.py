"""The operations on images and templates."""

from __future__ import annotations

import trio

from arrakis_rpc import daemon_api as api
from arrakis_rpc.errors import InvalidStateError
from arrakis_rpc.guest_api import Nothing

from ..machines.supervisor import Supervisor
from ..machines.surroundings import Surroundings
from ..machines.templates import Templates
from ..storage.images import ImageService
from ..storage.manifest import Manifest
from . import describe
from .call import Call


class ImageOperations:
    """``image.*`` and ``template.*``."""

    def __init__(
        self,
        surroundings: Surroundings,
        supervisor: Supervisor,
        templates: Templates,
        image_service: ImageService,
    ) -> None:
        self._paths = surroundings.paths
        self._store = surroundings.store
        self._supervisor = supervisor
        self._templates = templates
        self._image_service = image_service

    async def image_list(self, _: Nothing, __: Call) -> api.ImageList:
        """List all images."""
        return await self._image_service.list()

    async def image_build(self, params: api.ImageBuild, call: Call) -> api.ImageInfo:
        """Build an image from a Dockerfile and a context that the caller sends."""
        return await self._image_service.build(params, call.streams, call.progress)

    async def image_delete(self, params: api.ImageName, _: Call) -> Nothing:
        """Delete an image. What was started from it goes on, and keeps its files."""
        await self._image_service.delete(params.name)
        for template in list(self._store.templates.values()):
            if template.shape.image == params.name and not self._users(template.id):
                await self._delete(template)
        await self._image_service.collect(self._templates.image_digests)
        return Nothing()

    async def image_prune(self, params: api.ImagePrune, _: Call) -> api.ImageList:
        """Delete the images that have no name, and from which nothing stored descends."""
        await self._templates.keep_images()
        return await self._image_service.prune(dry_run=params.dry_run)

    async def template_list(self, _: Nothing, __: Call) -> api.TemplateList:
        """List all templates, oldest first."""
        manifests = sorted(self._store.templates.values(), key=lambda one: one.created)
        return api.TemplateList(templates=[describe.template(one) for one in manifests])

    async def template_build(self, params: api.TemplateBuild, call: Call) -> api.TemplateInfo:
        """Boot a shape once, for all later starts."""
        request = api.VmStart(
            name="template",
            image=params.image,
            vcpus=params.vcpus,
            memory_mib=params.memory_mib,
            disk_mib=params.disk_mib,
            vmm=params.vmm,
        )
        plan = await self._templates.plan(request)
        template = await self._templates.ensure(plan, call.progress)
        self._supervisor.pool.note_use(template)
        return describe.template(template)

    async def template_delete(self, params: api.TemplateId, _: Call) -> Nothing:
        """Delete a template on which nothing stands; the next start of its shape boots."""
        damaged = self._paths.template(params.id)
        is_damaged = damaged in self._store.damaged
        template = None if is_damaged else self._store.template(params.id)
        if users := self._users(params.id):
            raise InvalidStateError(
                f"template '{params.id}' is in use by {', '.join(users[:5])}",
                hint="delete these first",
            )
        if template is not None:
            await self._delete(template)
        await trio.to_thread.run_sync(self._store.delete_damaged, damaged)
        return Nothing()

    async def _delete(self, template: Manifest) -> None:
        await trio.to_thread.run_sync(self._store.delete, template)
        await self._supervisor.pool.end_unlikely()

    def _users(self, template_id: str) -> list[str]:
        snapshots = self._store.snapshots.values()
        return [
            *(f"snapshot '{one.id}'" for one in snapshots if one.template == template_id),
            *(
                f"VM '{machine.name}'"
                for machine in self._supervisor.machines
                if machine.template == template_id and not machine.ended.is_set()
            ),
        ]
