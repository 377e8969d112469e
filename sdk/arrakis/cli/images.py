"""Verbs on images and templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import as_json, manager, pairs, verb
from .output import age_text, duration_text, print_json, print_table, say, size_text
from .progress import Steps


@click.group()
def image() -> None:
    """Build, list and delete images, from which machines are started."""


@click.group()
def template() -> None:
    """Build, list and delete templates: shapes booted once, for quick starts."""


@verb("build", "arrakis image build ./my-agent -n my-agent --build-arg VERSION=3")
@click.argument("path", default=".", metavar="[DIRECTORY|DOCKERFILE]")
@click.option("-n", "--name", required=True, metavar="NAME", help="The image's name.")
@click.option("--build-arg", multiple=True, metavar="KEY=VALUE", callback=pairs)
@as_json
def build_image(path: str, name: str, build_arg: dict[str, str], as_json: bool) -> None:
    """Build an image from a Dockerfile.

    The directory, without what its .dockerignore excludes, is the build's context.
    """
    given = Path(path)
    directory, dockerfile = (given, "Dockerfile") if given.is_dir() else (given.parent, given.name)
    with Steps() as steps:
        built = manager().images.build(
            directory, dockerfile, name=name, build_args=build_arg, progress=steps
        )
    if as_json:
        print_json(built)
    else:
        say(f"built {built.name}, {size_text(built.bytes)}, {built.digest}")


@verb("list", "arrakis image list --json")
@as_json
def list_images(as_json: bool) -> None:
    """List all images."""
    found = manager().images.list()
    if as_json:
        print_json(found)
        return
    print_table(
        ("NAME", "SIZE", "FROM", "CREATED", "DIGEST"),
        [
            (
                one.name,
                size_text(one.bytes),
                one.parent or "-",
                age_text(one.created),
                one.digest.removeprefix("sha256:")[:12],
            )
            for one in found
        ],
    )


@verb("delete", "arrakis image delete my-agent")
@click.argument("name")
@as_json
def delete_image(name: str, as_json: bool) -> None:
    """Delete an image; what was started from it goes on."""
    manager().images.delete(name)
    if as_json:
        print_json({"name": name, "done": "deleted"})
    else:
        say(f"deleted {name}")


@verb("build", "arrakis template build --image my-agent --memory 2048")
@click.option("--image", metavar="IMAGE", help="The image to boot.")
@click.option("--vcpus", type=int, metavar="N", help="Number of virtual CPUs.")
@click.option("--memory", "memory_mib", type=int, metavar="MIB", help="Memory in MiB.")
@click.option("--disk", "disk_mib", type=int, metavar="MIB", help="Writable disk in MiB.")
@click.option("--vmm", metavar="NAME", help="The hypervisor: qemu, cloud-hypervisor, firecracker.")
@as_json
def build_template(as_json: bool, **shape: Any) -> None:
    """Boot a shape once, so that its later starts take no boot."""
    with Steps() as steps:
        built = manager().templates.build(progress=steps, **shape)
    if as_json:
        print_json(built)
    else:
        say(f"built {built.id}, booted in {duration_text(built.boot)}")


@verb("list", "arrakis template list --json")
@as_json
def list_templates(as_json: bool) -> None:
    """List all templates."""
    found = manager().templates.list()
    if as_json:
        print_json(found)
        return
    print_table(
        ("ID", "IMAGE", "VCPUS", "MIB", "DISK", "SIZE", "VMM", "ACCELERATOR", "CREATED"),
        [
            (
                one.id,
                one.image,
                one.vcpus,
                one.memory_mib,
                one.disk_mib,
                size_text(one.bytes),
                one.vmm,
                one.accelerator,
                age_text(one.created),
            )
            for one in found
        ],
    )


@verb("prune", "arrakis image prune --dry-run")
@click.option("--dry-run", is_flag=True, help="Only show what would be deleted.")
@as_json
def prune_images(dry_run: bool, as_json: bool) -> None:
    """Delete the images without a name that nothing needs, such as superseded base images."""
    pruned = manager().images.prune(dry_run=dry_run)
    if as_json:
        print_json(pruned)
        return
    if pruned:
        print_table(
            ("DIGEST", "SIZE", "CREATED"),
            [(one.digest[:12], size_text(one.bytes), age_text(one.created)) for one in pruned],
        )
    freed = size_text(sum(one.bytes for one in pruned))
    say(f"{'would free' if dry_run else 'freed'} {freed}")


for _command in (build_image, list_images, delete_image, prune_images):
    image.add_command(_command)


@verb("delete", "arrakis template delete 6dee7f4f06cd5566dd81")
@click.argument("template_id", metavar="ID")
@as_json
def delete_template(template_id: str, as_json: bool) -> None:
    """Delete a template on which nothing stands; the next start of its shape boots."""
    manager().templates.delete(template_id)
    if as_json:
        print_json({"id": template_id, "done": "deleted"})
    else:
        say(f"deleted {template_id}")


for _command in (build_template, list_templates, delete_template):
    template.add_command(_command)

VERBS: list[click.Command] = [image, template]
