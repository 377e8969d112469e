"""The verbs: what they ask for, and what they print."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from cli_harness import EVERYTHING, IMAGE, Cli
from scripted_daemon import VM, Peer

from arrakis_rpc.connection import CallReceived
from arrakis_rpc.errors import NotFoundError


@pytest.mark.parametrize(
    ("line", "method", "params", "output"),
    [
        ("start box", "vm.start", {"name": "box"}, "started box at 10.20.1.2/24\n"),
        (
            "start -n box -k /k -i /i -r /r -e run --image mine --vcpus 2 --memory 512 --disk 64 "
            "--vmm qemu",
            "vm.start",
            {
                "name": "box",
                "kernel": "/k",
                "initramfs": "/i",
                "rootfs": "/r",
                "entry_point": "run",
                "image": "mine",
                "vcpus": 2,
                "memory_mib": 512,
                "disk_mib": 64,
                "vmm": "qemu",
            },
            "started box at 10.20.1.2/24\n",
        ),
        ("start box -s before", "vm.start", {"name": "box", "snapshot": "before"}, None),
        ("restore -n box -i before", "vm.start", {"name": "box", "snapshot": "before"}, None),
        ("restore box --snapshot before", "vm.start", {"name": "box", "snapshot": "before"}, None),
        ("restore box --id before", "vm.start", {"name": "box", "snapshot": "before"}, None),
        ("restore box before", "vm.start", {"name": "box", "snapshot": "before"}, None),
        ("restore -n box before", "vm.start", {"name": "box", "snapshot": "before"}, None),
        ("rollback box -i before", "vm.rollback", {"name": "box", "snapshot": "before"}, None),
        ("stop -n box", "vm.stop", {"name": "box"}, "stopped box\n"),
        ("pause box", "vm.pause", {"name": "box"}, "paused box\n"),
        (
            "limits box --ttl 1.5h --idle-timeout none --on-timeout stop",
            "vm.set_limits",
            {"name": "box", "limits": {"ttl": 5400.0, "idle_timeout": 0.0, "on_timeout": "stop"}},
            "no limits\n",
        ),
        (
            "start box --ttl 90 --idle-timeout 10m",
            "vm.start",
            {"name": "box", "limits": {"ttl": 90.0, "idle_timeout": 600.0}},
            None,
        ),
        ("suspend box", "vm.suspend", {"name": "box"}, "suspended box\n"),
        ("resume box", "vm.resume", {"name": "box"}, "resumed box\n"),
        ("destroy box", "vm.destroy", {"name": "box"}, "destroyed box\n"),
        ("destroy-all", "vm.destroy_all", {}, "destroyed all machines\n"),
        ("fork box -c 2", "vm.fork", {"name": "box", "count": 2}, "left\nright\n"),
        (
            "fork box --as left --as right",
            "vm.fork",
            {"name": "box", "count": 2, "names": ["left", "right"]},
            "left\nright\n",
        ),
        (
            "rollback box before",
            "vm.rollback",
            {"name": "box", "snapshot": "before"},
            "box is back at before\n",
        ),
        (
            "rename box other --replace",
            "vm.rename",
            {"name": "box", "to": "other", "replace": True},
            "box is other now\n",
        ),
        ("snapshot box", "snapshot.create", {"vm": "box"}, "before\n"),
        ("snapshot -n box -o before", "snapshot.create", {"vm": "box", "id": "before"}, "before\n"),
        ("snapshot -n box -i before", "snapshot.create", {"vm": "box", "id": "before"}, "before\n"),
        ("snapshot diff", "snapshot.create", {"vm": "diff"}, "before\n"),
        ("snapshot diff --label a", "snapshot.create", {"vm": "diff", "label": "a"}, "before\n"),
        (
            "snapshot diff before after",
            "snapshot.diff",
            {"before": "before", "after": "after"},
            "+ /a  2.0 KiB\n- /b  directory\n- [7] sleep 9\n",
        ),
        ("snapshot-diff a b --json", "snapshot.diff", {"before": "a", "after": "b"}, None),
        (
            "snapshot-delete before -r",
            "snapshot.delete",
            {"id": "before", "recursive": True},
            "deleted before\n",
        ),
        (
            "desktop box scroll 640 400 0 -3",
            "desktop.scroll",
            {"vm": "box", "x": 640, "y": 400, "dx": 0, "dy": -3},
            "done: scroll\n",
        ),
        ("desktop box type -- -x", "desktop.type", {"vm": "box", "text": "-x"}, "done: type\n"),
        ("desktop box key ctrl+c --json", "desktop.key", {"vm": "box", "combo": "ctrl+c"}, None),
        ("image delete mine", "image.delete", {"name": "mine"}, "deleted mine\n"),
        ("image prune", "image.prune", {"dry_run": False}, None),
        ("image prune --dry-run", "image.prune", {"dry_run": True}, None),
        ("template delete abc", "template.delete", {"id": "abc"}, "deleted abc\n"),
        ("token revoke laptop", "token.revoke", {"name": "laptop"}, "revoked laptop\n"),
        (
            "template build --image mine --memory 512",
            "template.build",
            {"image": "mine", "memory_mib": 512},
            "built t, booted in 1 min\n",
        ),
    ],
)
def test_verb_asks_for_what_its_flags_say(
    arrakis: Cli, line: str, method: str, params: dict[str, Any], output: str | None
) -> None:
    """Each verb makes one call with exactly what was given, and says in a line what it did."""
    arrakis.asks(line, method, params, output)


@pytest.mark.parametrize("verb", ["stop", "pause", "suspend", "resume", "destroy"])
def test_several_machines(arrakis: Cli, verb: str) -> None:
    """What is done to one is done to each of several, once, also if one of them is not there."""

    def answer(_: Peer, call: CallReceived) -> Any:
        if call.params["name"] == "gone":
            return NotFoundError("there is no VM 'gone'")
        return EVERYTHING[f"vm_{verb}"]

    arrakis.serve(**{f"vm_{verb}": answer})
    code, out, err = arrakis(verb, "one", "gone", "-n", "other", "one")
    assert (code, err) == (3, "error: there is no VM 'gone'\n")
    assert [line.split()[-1] for line in out.splitlines()] == ["one", "other"]
    assert [asked["name"] for _, asked in arrakis.asked] == ["one", "gone", "other"]


def test_export_and_import(arrakis: Cli, tmp_path: Path) -> None:
    """A snapshot goes into a file, of which nothing is there after a failure, and comes out."""
    place = tmp_path / "place"
    place.mkdir()
    file = place / "archive"
    arrakis.asks(
        f"snapshot export before {file}",
        "snapshot.export",
        {"id": "before"},
        f"exported before to {file}\n",
    )
    assert list(place.iterdir()) == [file]
    arrakis.asked.clear()
    said = "imported before: 1 new, 0 were here\n"
    arrakis.asks(f"snapshot import {file}", "snapshot.import", {}, said)
    arrakis.serve(snapshot_export=NotFoundError("there is none"))
    assert arrakis("snapshot-export", "nothing", str(place / "other"))[0] == 3
    assert list(place.iterdir()) == [file]


@pytest.mark.parametrize(
    "line",
    [
        "start box",
        "stop box",
        "pause box",
        "resume box",
        "destroy box",
        "destroy-all",
        "list",
        "list -n box",
        "list-all",
        "fork box",
        "snapshot box",
        "restore box -i before",
        "snapshots",
        "snapshot-delete before",
        "image list",
        "image delete mine",
        "template delete abc",
        "template list",
        "template build",
        "health",
        "info",
        "info box",
        "doctor",
    ],
)
def test_every_result_can_be_had_as_json(arrakis: Cli, line: str) -> None:
    """With --json stdout is one JSON value and nothing else."""
    code, out, err = arrakis(*line.split(), "--json")
    assert (code, err) == (0, "")
    json.loads(out)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("list", "NAME   STATUS    IP             VCPUS   MIB   IMAGE   SNAPSHOT   CREATED"),
        ("list-all", "box    RUNNING   10.20.1.2/24   1       512   base    -"),
        ("list box", "IP address: 10.20.1.2/24"),
        ("snapshots", "before   box   t        512   2.0 KiB   12 ms"),
        ("image list", "mine   9 B    -      "),
        ("template list", "t    base    1       512   1024   9 B    qemu   tcg"),
        ("health", "healthy, up 2 s, machines: 1 RUNNING"),
        ("info", "Host:          8 CPUs, 2.0 GiB"),
        ("doctor", "ok   qemu     there"),
    ],
)
def test_reads_print_aligned_columns(arrakis: Cli, line: str, expected: str) -> None:
    """What is read is printed in plain columns that a script can cut."""
    code, out, _ = arrakis(*line.split())
    assert code == 0
    assert expected in out


def test_machine_that_failed_shows_why(arrakis: Cli) -> None:
    """The last words of a machine that stopped by itself are part of its description."""
    forward = {"host_port": "3000", "guest_port": "5901", "description": "gui"}
    failure = {"reason": "VMM ended with signal 9", "console": ["Kernel panic", "\x1b[2Jend"]}
    arrakis.serve(
        vm_info={**VM, "status": "STOPPED", "failure": failure, "port_forwards": [forward]}
    )
    _, out, _ = arrakis("list", "-n", "box")
    assert re.search(
        r"Failure: +VMM ended with signal 9\n  \| Kernel panic\n  \| \\x1b\[2Jend", out
    )
    assert "Port 3000 -> 5901: gui" in out


def test_progress_is_plain_lines_in_a_pipe(arrakis: Cli) -> None:
    """Steps are lines on stderr, each once, when that is no terminal."""

    def start(peer: Peer, call: CallReceived) -> Any:
        for text, step, total in (("booting", 0, 0), ("booting", 0, 0), ("waiting", 2, 3)):
            peer.note(call, "call.progress", text=text, step=step, total=total)
        return VM

    arrakis.serve(vm_start=start)
    assert arrakis("start", "box") == (
        0,
        "started box at 10.20.1.2/24\n",
        "booting\n[2/3] waiting\n",
    )


def test_image_build_takes_a_directory_or_a_dockerfile(arrakis: Cli, tmp_path: Path) -> None:
    """PATH is the context, or the Dockerfile in it; build arguments are passed on."""

    def build(peer: Peer, call: CallReceived) -> Any:
        peer.read_all(call)
        return IMAGE

    (tmp_path / "Dockerfile").write_text("FROM base")
    (tmp_path / "Other").write_text("FROM base")
    for path, dockerfile in ((tmp_path, "Dockerfile"), (tmp_path / "Other", "Other")):
        arrakis.serve(image_build=build)
        code, out, _ = arrakis("image", "build", str(path), "-n", "mine", "--build-arg", "A=1=2")
        assert (code, out) == (0, f"built mine, 9 B, {IMAGE['digest']}\n")
        assert arrakis.asked[-1][1] == {
            "name": "mine",
            "dockerfile": dockerfile,
            "build_args": {"A": "1=2"},
        }


def test_events_are_followed(arrakis: Cli) -> None:
    """Each event is a line, for people or as JSON, until the daemon ends the subscription."""

    def subscribe(peer: Peer, call: CallReceived) -> Any:
        peer.note(call, "event", kind="vm.failed", time=0.0, vm="box", data={"why": "\x1b"})
        peer.note(call, "event", kind="daemon.stopping", time=0.0, vm=None, data={})
        return {}

    arrakis.serve(events_subscribe=subscribe)
    clock = time.strftime("%H:%M:%S", time.localtime(0))
    _, out, _ = arrakis("events")
    assert out.splitlines()[0].split() == [clock, "vm.failed", "box", '{"why":', '"\\u001b"}']
    _, out, _ = arrakis("events", "--json")
    assert [json.loads(line)["kind"] for line in out.splitlines()] == [
        "vm.failed",
        "daemon.stopping",
    ]


def test_token_is_printed_alone_on_the_last_line(arrakis: Cli) -> None:
    """A script that takes the output has the token; what people should know goes to stderr."""
    code, out, err = arrakis("token", "create", "laptop")
    assert (code, out) == (0, "ark_secret\n")
    assert "not shown again" in err
    assert arrakis.asked == [("token.create", {"name": "laptop"})]
    assert json.loads(arrakis("token", "create", "laptop", "--json")[1]) == {
        "name": "laptop",
        "token": "ark_secret",
    }


def test_tokens_are_listed_with_their_use(arrakis: Cli) -> None:
    """One that nobody has used says so."""
    code, out, _ = arrakis("token", "list")
    assert code == 0
    assert re.search(r"^laptop .* ago +never$", out, re.MULTILINE)
    assert json.loads(arrakis("token", "list", "--json")[1]) == [
        {"name": "laptop", "created": 1.0, "used": None}
    ]
