"""What the daemon keeps beside its VMs, and how they hang together: images, templates, the tree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from arrakis_rpc import daemon_api as api

from . import models as m
from .json_form import public
from .routes import Ask, Route

_BUILD = (404, 422, 502, 503, 504)


async def list_images(ask: Ask) -> Any:
    """Give all images by name."""
    return public(await ask.call("image.list"), api.ImageList)


async def list_templates(ask: Ask) -> Any:
    """Give all templates, oldest first."""
    return public(await ask.call("template.list"), api.TemplateList)


async def build_template(ask: Ask) -> Any:
    """Boot a shape once and keep it, so that its later starts are restores."""
    body: m.TemplateRequest = ask.body
    shape = {
        "image": body.image,
        "vcpus": body.vcpus,
        "memory_mib": body.memoryMib,
        "disk_mib": body.diskMib,
        "vmm": body.vmm,
    }
    return public(await ask.call("template.build", **shape), api.TemplateInfo)


async def delete_template(ask: Ask) -> Any:
    """Delete a template on which nothing stands; the next start of its shape boots again."""
    chosen = ask.path["id"]
    await ask.call("template.delete", id=chosen)
    return {"success": True, "message": f"template {chosen} is deleted"}


async def tree(ask: Ask) -> Any:
    """Tell who came from whom: templates, the snapshots on top of them, and who stands where.

    It is put together of several answers: what changes meanwhile may be missing.
    """
    templates = (await ask.call("template.list"))["templates"]
    snapshots = await ask.all_of("snapshot.list", "snapshots")
    machines: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for vm in await ask.all_of("vm.list", "vms"):
        place = ("snapshot", vm["snapshot"]) if vm["snapshot"] else ("template", vm["template"])
        machines[place].append(vm["name"])
    places = [
        *(_place("template", one, one["image"], machines) for one in templates),
        *(_place("snapshot", one, one["label"], machines) for one in snapshots),
    ]
    return {"places": places}


def _place(
    kind: str, stored: Any, label: str, machines: Mapping[tuple[str, str], list[str]]
) -> Any:
    root = stored["id"] if kind == "template" else stored["template"]
    place = {name: stored.get(name) for name in ("id", "parent", "created", "bytes")}
    standing = machines.get((kind, stored["id"]), [])
    place |= {"kind": kind, "label": label, "template": root, "machines": standing}
    return public(place, m.TreePlace)


ROUTES = [
    Route("GET", "/v1/tree", tree, "Who came from whom, and where the VMs stand", m.Tree),
    Route("GET", "/v1/images", list_images, "All images", api.ImageList),
    Route("GET", "/v1/templates", list_templates, "All templates", api.TemplateList),
    Route(
        "POST",
        "/v1/templates",
        build_template,
        "Boot a shape once, for all later starts",
        api.TemplateInfo,
        m.TemplateRequest,
        fails=_BUILD,
    ),
    Route(
        "DELETE",
        "/v1/templates/{id}",
        delete_template,
        "Delete a template on which nothing stands",
        m.VMResponse,
        fails=(404, 409),
    ),
]
