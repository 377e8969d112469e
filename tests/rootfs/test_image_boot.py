import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from arrakis_kernel import cache_directory, ensure_kernel
from arrakis_rootfs import Image

pytestmark = pytest.mark.vm

SERVICE = """\
[Service]
Type=exec
ExecStart=/bin/sh /probe
StandardOutput=journal
"""

PROBE = r"""
systemctl is-system-running --wait > /tmp/state
cd /tmp
tell() {
    printf '@%s\t%s\n' "$1" "$(cat)" | tr '\n' '|' > line
    cat line > /dev/console
    echo > /dev/console
}
list="systemctl --no-legend --plain"
cat state | tell state
cut -d' ' -f1 /proc/uptime | tell uptime
$list list-units --state=failed | tell failed
systemctl is-active arrakis-agent.service ssh.socket | tell active
$list list-timers | tell timers
$list list-units --type=service --state=running | cut -d' ' -f1 | tell services
cat /etc/machine-id | tell machine-id
[ -e /all ] || { systemctl reboot; exit; }
ls /etc/ssh | grep ssh_host | tell host-keys
cut -d' ' -f1-4 /proc/self/mounts | grep -E ' / |/dev/vd|erofs|ext4' | tell mounts
stat -c '%U %a' / /tmp /home/elara | tell owners
su elara -c 'sudo -n id -u' | tell sudo
ssh-keygen -q -N '' -t ed25519 -f /etc/ssh/ssh_host_ed25519_key
ssh-keygen -q -N '' -t ed25519 -f /tmp/key
install -o elara -m 700 -d /home/elara/.ssh
install -o elara -m 600 /tmp/key.pub /home/elara/.ssh/authorized_keys
options="-i /tmp/key -o StrictHostKeyChecking=accept-new -o BatchMode=yes"
ssh $options elara@127.0.0.1 'id -un; echo $LANG' | tell ssh
rm -r /home/elara/.ssh
ssh $options elara@127.0.0.1 id 2>&1 | tell ssh-refused
(umask 022; mkdir -p /run/arrakis/ssh; cat /tmp/key.pub > /run/arrakis/ssh/elara)
ssh $options elara@127.0.0.1 id -un | tell ssh-given
ssh $options root@127.0.0.1 id -un 2>&1 | tell ssh-root
python3 -I -S -c '
import importlib.util, os, struct, sys
sys.path.insert(0, "/usr/lib/arrakis")
stale = []
for name in ("json", "subprocess", "arrakis_agent", "attrs", "cattrs"):
    source = importlib.util.find_spec(name).origin
    with open(importlib.util.cache_from_source(source), "rb") as file:
        _, flags, mtime, size = struct.unpack("<4sIII", file.read(16))
    if (mtime, size) != (int(os.stat(source).st_mtime), os.stat(source).st_size):
        stale.append(name)
print(stale)' | tell stale
systemctl reboot
"""


@pytest.fixture(scope="module")
def boots(base: Image, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What two machines started from the base image say about themselves, the first one all."""
    return [boot(base, tmp_path_factory.mktemp("machine"), tells_all=one) for one in (True, False)]


def boot(base: Image, directory: Path, *, tells_all: bool) -> dict[str, str]:
    upper = directory / "disk" / "upper"
    units = upper / "etc/systemd/system"
    (units / "multi-user.target.wants").mkdir(parents=True)
    (units / "probe.service").write_text(SERVICE)
    (units / "multi-user.target.wants/probe.service").symlink_to("../probe.service")
    (upper / "probe").write_text(PROBE)
    if tells_all:
        (upper / "all").touch()
    upper.chmod(0o755)
    (directory / "disk" / "work").mkdir()
    disk = directory / "disk.ext4"
    subprocess.run(["mkfs.ext4", "-q", "-d", directory / "disk", disk, "256M"], check=True)
    kernel = ensure_kernel(cache_directory(), print)
    started = time.monotonic()
    done = subprocess.run(
        [
            *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"),
            *("-m", "1024M", "-smp", "1", "-nodefaults", "-nographic", "-no-reboot"),
            *("-serial", "stdio", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-drive", f"if=none,id=a,file={base.path},format=raw,readonly=on,file.locking=off"),
            *("-device", "virtio-blk-pci,drive=a"),
            *(
                "-drive",
                f"if=none,id=b,file={disk},format=raw",
                "-device",
                "virtio-blk-pci,drive=b",
            ),
            *("-chardev", f"socket,id=agent,path={directory}/agent,server=on,wait=off"),
            *("-device", "virtserialport,chardev=agent,name=agent"),
            *("-kernel", str(kernel.vmlinux), "-initrd", str(kernel.initramfs), "-append"),
            "console=ttyS0 panic=-1 quiet reboot=t tsc=reliable no_timer_check",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=900,
        check=True,
    )
    console = done.stdout.decode(errors="replace")
    told = {
        name: value.replace("|", "\n").strip()
        for name, value in re.findall(r"^@([\w-]+)\t(.*?)\r?$", console, re.MULTILINE)
    }
    assert ("stale" if tells_all else "machine-id") in told, console
    return told | {"wall": str(time.monotonic() - started)}


def test_machine_comes_up_whole(boots: list[dict[str, str]]) -> None:
    """The machine reaches its goal without a failed unit, agent and ssh socket up."""
    for told in boots:
        assert told["state"] == "running", json.dumps(told, indent=1)
        assert told["failed"] == ""
        assert told["active"] == "active\nactive"


def test_idle_machine_is_quiet(boots: list[dict[str, str]]) -> None:
    """No timer is armed, and nothing runs but the agent and the journal."""
    assert boots[0]["timers"] == ""
    assert set(boots[0]["services"].split()) == {
        "arrakis-agent.service",
        "probe.service",
        "systemd-journald.service",
    }


def test_machines_are_not_born_twins(boots: list[dict[str, str]]) -> None:
    """Each start has a machine-id of its own, and no host key comes with the image."""
    first, second = (told["machine-id"] for told in boots)
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert first != second
    assert boots[0]["host-keys"] == ""


def test_layers_cannot_be_reached(boots: list[dict[str, str]]) -> None:
    """The disk and the image are seen through the root directory only."""
    (line,) = boots[0]["mounts"].splitlines()
    assert line.startswith("overlay / overlay rw")


def test_user_has_sudo_and_a_home(boots: list[dict[str, str]]) -> None:
    """The user elara owns a home directory and becomes root without a password."""
    assert boots[0]["sudo"] == "0"
    root, tmp, home = boots[0]["owners"].splitlines()
    assert (root, tmp) == ("root 755", "root 1777")
    assert home in {"elara 755", "elara 750"}


def test_ssh_takes_the_host_key_of_the_moment(boots: list[dict[str, str]]) -> None:
    """A host key written after the start is in force at once, and elara logs in with a key."""
    assert boots[0]["ssh"].splitlines() == ["elara", "C.UTF-8"]


def test_ssh_takes_the_keys_that_the_agent_writes(boots: list[dict[str, str]]) -> None:
    """Keys that come with the identity let somebody in as elara, and as nobody else."""
    assert "Permission denied" in boots[0]["ssh-refused"]
    assert boots[0]["ssh-given"] == "elara"
    assert "Permission denied" in boots[0]["ssh-root"]


def test_python_modules_stay_compiled(boots: list[dict[str, str]]) -> None:
    """Packing kept the times by which Python tells that a compiled module is current."""
    assert boots[0]["stale"] == "[]"
