from pathlib import Path

import pytest

from arrakis_rootfs.files import resolve_in


@pytest.mark.parametrize(
    ("link", "target", "meant"),
    [
        ("etc/os-release", "../usr/lib/os-release", "usr/lib/os-release"),
        ("etc/os-release", "/usr/lib/os-release", "usr/lib/os-release"),
        ("etc/os-release", "../../../../../usr/lib/os-release", "usr/lib/os-release"),
        ("etc", "/usr/lib", "usr/lib/os-release"),
    ],
)
def test_links_are_followed_as_the_guest_would(
    tmp_path: Path, link: str, target: str, meant: str
) -> None:
    """Absolute links and too many dots lead to places inside the tree."""
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/os-release").write_text("inside")
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(target)
    assert resolve_in(tmp_path, "/etc/os-release") == tmp_path / meant


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../etc/passwd", "loop"])
def test_hosts_files_cannot_be_reached(tmp_path: Path, target: str) -> None:
    """A link out of the tree leads nowhere, and a link to itself ends."""
    (tmp_path / "loop").symlink_to(target)
    with pytest.raises(OSError):
        resolve_in(tmp_path, "/loop")
