"""What the REST API has beyond the Go program, and what describes it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from http_daemon import Web, read_all

from arrakis_rpc import errors
from arrakisd.http.app import ROUTES
from arrakisd.http.statuses import _STATUSES


@pytest.mark.vm
def test_forks_are_siblings_that_run(web: Web) -> None:
    """With names of one's choice, or the daemon's."""
    assert web.ask("POST", "/v1/vms", {"vmName": "parent"}).status == 200
    named = web.ask("POST", "/v1/vms/parent/fork", {"names": ["one", "two"]})
    assert [vm["vmName"] for vm in named.json["vms"]] == ["one", "two"]
    counted = web.ask("POST", "/v1/vms/parent/fork", {})
    assert [vm["vmName"] for vm in counted.json["vms"]] == ["parent-fork1"]
    assert web.ask("POST", "/v1/vms/parent/fork", {"names": ["one"]}).status == 409
    for name in ("one", "two", "parent-fork1"):
        answer = web.ask("POST", f"/v1/vms/{name}/cmd", {"cmd": "hostname"})
        assert answer.json["output"] == f"{name}\n"


@pytest.mark.vm
def test_snapshots_are_listed_described_and_deleted(web: Web) -> None:
    """A page at a time, oldest first; ids with capitals are found as they were given."""
    web.ask("POST", "/v1/vms", {"vmName": "Box_1"})
    for chosen in ("First_Of.Box_1", "second"):
        web.ask("POST", "/v1/vms/Box_1/snapshots", {"snapshotId": chosen, "label": "a label"})
    page = web.ask("GET", "/v1/snapshots?limit=1").json
    assert [one["id"] for one in page["snapshots"]] == ["first-of-box-1"]
    rest = web.ask("GET", f"/v1/snapshots?after={page['next'].replace(' ', '%20')}").json
    assert [one["id"] for one in rest["snapshots"]] == ["second"]
    assert "next" not in rest
    found = web.ask("GET", "/v1/snapshots/second").json
    assert (found["parent"], found["label"], found["vm"]) == ("first-of-box-1", "a label", "Box_1")
    assert found["memoryMib"] == 1024
    again = web.ask("POST", "/v1/vms", {"vmName": "again", "snapshotId": "First_Of.Box_1"})
    assert (again.json["vmName"], again.json["snapshotId"]) == ("again", "first-of-box-1")
    assert web.ask("DELETE", "/v1/snapshots/second").json["success"]
    assert web.ask("GET", "/v1/snapshots/second").status == 404
    assert web.ask("DELETE", "/v1/snapshots/second").status == 404


@pytest.mark.vm
def test_a_suspended_machine_is_a_paused_one_that_says_so(web: Web) -> None:
    """Who knows of the Go program's states only sees it paused, and resumes it like that."""
    web.ask("POST", "/v1/vms", {"vmName": "aside"})
    suspended = web.ask("POST", "/v1/vms/aside/suspend").json
    assert (suspended["status"], suspended["suspended"]) == ("PAUSED", True)
    assert web.ask("GET", "/v1/vms").json["vms"] == [suspended]
    assert web.ask("POST", "/v1/vms/aside/suspend").status == 409
    assert web.ask("PATCH", "/v1/vms/aside", {"status": "resume"}).status == 200
    resumed = web.ask("GET", "/v1/vms/aside").json
    assert (resumed["status"], resumed["suspended"]) == ("RUNNING", False)


@pytest.mark.vm
def test_ports_and_egress_change_while_it_runs(web: Web) -> None:
    """A port is added, listed and removed; what it may reach is in its description."""
    started = web.ask("POST", "/v1/vms", {"vmName": "net", "ports": [], "egress": {"mode": "none"}})
    assert started.json["portForwards"] == []
    added = web.ask("POST", "/v1/vms/net/ports", {"guestPort": 8000, "description": "web"}).json
    assert (added["guestPort"], added["published"]) == (8000, False)
    assert web.ask("GET", "/v1/vms/net/ports").json == {"ports": [added]}
    assert web.ask("DELETE", f"/v1/vms/net/ports/{added['hostPort']}").status == 200
    assert web.ask("DELETE", f"/v1/vms/net/ports/{added['hostPort']}").status == 404
    allowed = {"mode": "allow", "allow": ["pypi.org:443"]}
    assert web.ask("PUT", "/v1/vms/net/egress", allowed).status == 200
    assert web.ask("GET", "/v1/vms/net").json["egress"] == allowed
    assert web.ask("PUT", "/v1/vms/net/egress", {"mode": "allow"}).status == 400


@pytest.mark.vm
def test_a_start_may_choose_its_shape(web: Web) -> None:
    """Except when a snapshot brings one; unknown images are not there."""
    missing = web.ask("POST", "/v1/vms", {"vmName": "a", "image": "no-such-image"})
    assert missing.status == 404
    assert web.ask("POST", "/v1/vms", {"vmName": "a", "vmm": "no-such-vmm"}).status == 404
    both = web.ask("POST", "/v1/vms", {"vmName": "a", "snapshotId": "b", "vcpus": 1})
    assert both.status == 400
    go = {"vmName": "a", "kernel": "", "rootfs": "", "entryPoint": "touch here", "snapshotId": ""}
    assert web.ask("POST", "/v1/vms", go).status == 200


@pytest.mark.vm
def test_the_tree_says_who_came_from_whom(web: Web) -> None:
    """Templates, snapshots with their parents, and the machines where they stand."""
    (template,) = web.ask("GET", "/v1/templates").json["templates"]
    for name in ("trunk", "sprout"):
        web.ask("POST", "/v1/vms", {"vmName": name})
    for chosen in ("first", "second"):
        web.ask("POST", "/v1/vms/trunk/snapshots", {"snapshotId": chosen, "label": f"a {chosen}"})
    web.ask("POST", "/v1/vms", {"vmName": "again", "snapshotId": "first"})
    places = web.ask("GET", "/v1/tree").json["places"]
    root = template["id"]
    assert [(one["kind"], one["id"], one.get("parent"), one["label"]) for one in places] == [
        ("template", root, None, template["image"]),
        ("snapshot", "first", None, "a first"),
        ("snapshot", "second", "first", "a second"),
    ]
    assert [one["machines"] for one in places] == [["sprout"], ["again"], ["trunk"]]
    assert {one["template"] for one in places} == {root}


@pytest.mark.vm
def test_templates_are_made_once_and_kept_while_needed(web: Web) -> None:
    """What is there is given, and what something stands on is not deleted."""
    (template,) = web.ask("GET", "/v1/templates").json["templates"]
    assert web.ask("POST", "/v1/templates", {}).json == template
    assert web.ask("POST", "/v1/templates", {"image": "no-such-image"}).status == 404
    web.ask("POST", "/v1/vms", {"vmName": "stands"})
    assert web.ask("DELETE", f"/v1/templates/{template['id']}").status == 409
    assert web.ask("DELETE", "/v1/templates/no-such").status == 404
    images = web.ask("GET", "/v1/images").json["images"]
    assert template["imageDigest"] in {image["digest"] for image in images}


@pytest.mark.vm
def test_directories_are_made_listed_and_removed(web: Web) -> None:
    """A page at a time, with what there is to say of each entry; the guest says how it is."""
    web.ask("POST", "/v1/vms", {"vmName": "box"})
    box = "/v1/vms/box"
    made = web.ask("PUT", f"{box}/directory?path=a/b&parents=true&mode=448").json
    assert (made["name"], made["kind"], made["mode"] & 0o7777) == ("b", "directory", 0o700)
    assert web.ask("PUT", f"{box}/directory?path=a/b").status == 409
    for name in ("one", "two"):
        web.ask("PUT", f"{box}/file?path=a/{name}", name.encode())
    page = web.ask("GET", f"{box}/directory?path=a&limit=2").json
    assert [entry["name"] for entry in page["entries"]] == ["b", "one"]
    assert page["more"]
    rest = web.ask("GET", f"{box}/directory?path=a&after=one").json
    assert ([entry["size"] for entry in rest["entries"]], rest["more"]) == ([3], False)
    assert web.ask("GET", f"{box}/stat?path=a/two").json == rest["entries"][0]
    assert web.ask("DELETE", f"{box}/file?path=a").status == 409
    assert web.ask("DELETE", f"{box}/file?path=a&recursive=true").json["success"]
    assert web.ask("GET", f"{box}/stat?path=a").status == 404
    assert web.ask("GET", f"{box}/health").json["processes"] > 1


def test_the_host_is_looked_at(web: Web) -> None:
    """What it can do, as `arrakis doctor` tells it."""
    checks = web.ask("GET", "/v1/doctor").json["checks"]
    assert all(check["detail"] for check in checks)


def test_the_document_describes_every_route(web: Web) -> None:
    """With all paths and methods, and each reference leads somewhere."""
    answer = web.ask("GET", "/openapi.json")
    document = answer.json
    described = {
        (verb.upper(), path) for path, verbs in document["paths"].items() for verb in verbs
    }
    assert described == {(route.verb, route.path) for route in ROUTES}
    names = set(re.findall(r"#/components/schemas/(\w+)", answer.body.decode()))
    assert names == document["components"]["schemas"].keys()


def test_the_page_shows_every_route_and_loads_nothing(web: Web) -> None:
    """It has no scripts and no addresses of others, and is allowed none."""
    answer = web.ask("GET", "/docs")
    page = answer.body.decode()
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script" not in page
    assert "http" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL).replace("https", "")
    for route in ROUTES:
        assert f"<b>{route.verb}</b> <code>{route.path}</code>" in page
    HTMLParser().feed(page)


def test_answers_keep_the_connection(web: Web) -> None:
    """A client asks many times on one connection."""
    with web.connected() as one:
        # All at once: who has asked nothing for some seconds is cut off, on a busy machine as well.
        one.sendall(5 * web.head("GET /v1/health HTTP/1.1"))
        answers = read_all(one, 10)
    assert answers.count(b"HTTP/1.1 200") == 5
    assert b"connection: close" not in answers


def test_methods_that_a_path_does_not_have_are_named(web: Web) -> None:
    """405, with those that it has."""
    answer = web.ask("PUT", "/v1/vms")
    assert (answer.status, answer.headers["allow"]) == (405, "DELETE, GET, POST")


def test_every_error_has_a_status() -> None:
    """Those of files have one for each errno instead."""
    classes = set(errors.ArrakisError.__subclasses__())
    ours = {one for one in classes if one.__module__ == errors.__name__}
    assert ours - _STATUSES.keys() == {errors.FileOperationError}
