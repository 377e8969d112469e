"""Making stored guests of what an archive holds: all of them, or none."""

from __future__ import annotations

from pathlib import Path

from attrs import evolve

from arrakis_rpc.errors import AlreadyExistsError, ArrakisError, IntegrityError

from ..host.disks import FROZEN, layer_below
from .archive import Progress, Unpacker
from .archive_contents import Contents, Part
from .manifest import EMPTY_LAYER, Layer, Manifest, SavedNetwork
from .store import Store

_IMPORTED = "imported-"


class Import:
    """The contents of one archive on their way into a store."""

    def __init__(self, store: Store, contents: Contents) -> None:
        self._store = store
        self._contents = contents
        there = store.layers()
        self._known = {layer.id: there[layer.id] for layer in contents.layers if layer.id in there}
        self._template = _same_template(store, contents.template)
        self.present = [one.id for one in contents.snapshots if self._is_present(one)]
        for layer in contents.layers:
            known = self._known.get(layer.id)
            if known is not None and _digests(known) != _digests(layer):
                raise IntegrityError(f"the archive has another content for layer {layer.id}")

    @property
    def layer_ids(self) -> list[str]:
        """The layers to hold while this goes on."""
        return [layer.id for layer in self._contents.layers]

    def _is_present(self, one: Manifest) -> bool:
        there = self._store.snapshots.get(one.id)
        if there is None:
            return False
        # Not its layers: they may have been merged since.
        if (there.halted, there.resync_token, _digests(there)) == (
            (one.halted, one.resync_token, _digests(one))
        ):
            return True
        raise AlreadyExistsError(
            f"a snapshot '{one.id}' exists already, and is another one",
            hint="delete it, or import into another daemon",
        )

    def receive(self, unpacker: Unpacker, work: Path, progress: Progress) -> None:
        """Write into a scratch directory what is not there yet, and check all of it. Blocks."""
        for part in self._contents.parts():
            if self._is_there(part):
                unpacker.skip(part)
            else:
                target = work / self._contents.path(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                unpacker.store(part, target)
            progress(part.file.allocated)
        unpacker.end()
        for one in (self._contents.template, *self._contents.snapshots):
            for layer, below in zip(one.layers, [None, *one.layers], strict=False):
                if layer.id not in self._known:
                    _check_disks(work / "layers" / layer.id, layer, below)

    def _is_there(self, part: Part) -> bool:
        if isinstance(part.owner, Layer):
            return part.owner.id in self._known
        if part.owner.is_template:
            return self._template is not None
        return part.owner.id in self.present

    def publish(self, work: Path, root_image: Path) -> list[str]:
        """Make templates and snapshots of what was received; give the new ones' ids. Blocks."""
        contents, made = self._contents, list[Manifest]()
        if len(self.present) == len(contents.snapshots):
            return []
        layers = self._known | {
            layer.id: self._store.adopt_layer(work / "layers" / layer.id, layer)
            for layer in contents.layers
            if layer.id not in self._known
        }
        shape = evolve(contents.template.shape, root_image=str(root_image))
        try:
            template = self._template
            if template is None:
                # Never under the id of a shape: nothing that came from elsewhere is started.
                name = _IMPORTED + contents.template.layers[0].id
                template = evolve(contents.template, id=name, template=name, shape=shape)
                parts = work / "templates" / contents.template.id
                template = self._published(parts, template, layers)
                made.append(template)
            for one in contents.snapshots:
                if one.id not in self.present:
                    network = _on_loopback(one.network)
                    one = evolve(one, template=template.id, shape=shape, network=network)
                    parts = work / "snapshots" / one.id
                    made.append(self._published(parts, one, layers))
        except BaseException:
            for one in reversed(made):
                self._store.delete(one)
            raise
        return [one.id for one in made if not one.is_template]

    def _published(self, parts: Path, one: Manifest, layers: dict[str, Layer]) -> Manifest:
        own = [layers[layer.id] for layer in one.layers]
        return self._store.publish(parts, one, own, [])


def _same_template(store: Store, template: Manifest) -> Manifest | None:
    for there in list(store.templates.values()):
        if there.layers[0].id == template.layers[0].id:
            if _digests(there) == _digests(template):
                return there
            raise IntegrityError("the archive has another content for a template that is here")
    return None


def _on_loopback(network: SavedNetwork | None) -> SavedNetwork | None:
    """Leave out which ports were reachable from outside: that is for each host to decide."""
    if network is None:
        return None
    return evolve(network, ports=[evolve(port, publish=False) for port in network.ports])


def _digests(one: Manifest | Layer) -> dict[str, str]:
    return {name: file.digest for name, file in one.files.items()}


def _check_disks(place: Path, layer: Layer, below: Layer | None) -> None:
    """Raise `ArrakisError` for a disk that does not lie where the archive says that it does."""
    lies_on = layer_below(place / FROZEN)
    if lies_on != (None if below is None else below.id):
        raise _misplaced(layer)
    if EMPTY_LAYER in layer.files and layer_below(place / EMPTY_LAYER) != layer.id:
        raise _misplaced(layer)


def _misplaced(layer: Layer) -> ArrakisError:
    return IntegrityError(f"layer {layer.id} does not lie where the archive says")
