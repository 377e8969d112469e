import hashlib
import json
import shutil
from pathlib import Path

import pytest

from arrakis_kernel import (
    KernelFiles,
    KernelStoreError,
    KernelToolError,
    cache_directory,
    ensure_kernel,
    find_kernel,
    load_kernel,
    store,
)


@pytest.fixture
def cache(kernel: KernelFiles, tmp_path: Path) -> Path:
    """A cache of this test's own, holding the machine's kernel."""
    kernels = tmp_path / "kernels"
    shutil.copytree(kernel.vmlinux.parent, kernels / kernel.digest)
    (kernels / "current").symlink_to(kernel.digest)
    return tmp_path


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No external program can be started, so nothing can be fetched."""
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))


@pytest.mark.usefixtures("no_programs")
def test_filled_cache_needs_no_network(cache: Path, kernel: KernelFiles) -> None:
    """With the kernel in the cache nothing is fetched, and nothing is said."""
    told: list[str] = []
    assert ensure_kernel(cache, told.append) == find_kernel(cache)
    assert ensure_kernel(cache, told.append).digest == kernel.digest
    assert told == []


def test_manifest_describes_every_file(kernel: KernelFiles) -> None:
    """Sizes and digests in the manifest are those of the files."""
    directory = kernel.vmlinux.parent
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["format_version"] == store.FORMAT_VERSION
    assert manifest["version"] == kernel.version
    assert manifest["files"] == {
        path.name: {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }
        for path in (kernel.vmlinux, kernel.bzimage, kernel.initramfs)
    }


def test_empty_cache_holds_no_kernel(tmp_path: Path) -> None:
    """A cache that was never filled is not an error."""
    assert find_kernel(tmp_path / "nothing") is None


@pytest.mark.usefixtures("no_programs")
def test_failed_preparation_leaves_nothing(tmp_path: Path) -> None:
    """When fetching fails the cache holds no kernel, whole or half."""
    with pytest.raises(KernelToolError, match="apt"):
        ensure_kernel(tmp_path, print)
    assert [path.name for path in (tmp_path / "kernels").iterdir()] == [".lock"]
    assert find_kernel(tmp_path) is None


def test_changed_recipe_wants_another_kernel(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel made by an older program is found and used, but set-up makes the next one."""
    kernel = find_kernel(cache)
    assert kernel is not None
    assert store.find_current_kernel(cache) == kernel
    monkeypatch.setattr(store, "MODULES", (*store.MODULES, "another"))
    assert find_kernel(cache) == kernel
    assert store.find_current_kernel(cache) is None


def test_cut_off_file_is_named(cache: Path, kernel: KernelFiles) -> None:
    """A file shorter than it was made is an error that names it."""
    damaged = cache / "kernels" / kernel.digest / "initramfs.cpio"
    damaged.write_bytes(damaged.read_bytes()[:-512])
    with pytest.raises(KernelStoreError, match=str(damaged)):
        find_kernel(cache)


@pytest.mark.parametrize("digest", ["..", "../kernels", "", "current", "f" * 64])
def test_only_known_digests_are_looked_up(cache: Path, digest: str) -> None:
    """What is no digest, or an unknown one, finds nothing."""
    assert load_kernel(cache, digest) is None


def test_leftovers_of_a_killed_run_are_swept(cache: Path) -> None:
    """The next preparation removes what a killed one left."""
    leftover = cache / "kernels" / ".new-abandoned"
    leftover.mkdir()
    (leftover / "vmlinux").write_bytes(b"half")
    store.sweep(cache / "kernels")
    assert not leftover.exists()


@pytest.mark.slow
def test_kernel_is_fetched_and_prepared(tmp_path: Path, kernel: KernelFiles) -> None:
    """From nothing, the same kernel is made as on any other day."""
    fetched = ensure_kernel(tmp_path, print)
    assert fetched.digest == kernel.digest
    assert fetched.initramfs.read_bytes() == kernel.initramfs.read_bytes()
    assert sorted(path.name for path in (tmp_path / "kernels").iterdir()) == sorted(
        [".lock", "current", fetched.digest]
    )


def test_cache_directory_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ARRAKIS_CACHE wins over the defaults."""
    monkeypatch.setenv("ARRAKIS_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
