"""Run a fake hypervisor: ``run_fake.py KIND FAKE-DIRECTORY ARGUMENTS...``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from fake_cloud_hypervisor import FakeCloudHypervisor
from fake_firecracker import FakeFirecracker


def main(kind: str, directory: str, *arguments: str) -> None:
    settings = json.loads(Path(directory, "settings").read_text())
    if "--version" in arguments:
        print(settings["version_line"])
        return
    if settings.get("die_at") == "start":
        sys.exit("fake: dying at the start as told")
    makers = {"cloud-hypervisor": FakeCloudHypervisor, "firecracker": FakeFirecracker}
    if "--kernel" in arguments or "--config-file" in arguments:
        if settings.get("probe") == "boots":
            print("ARRAKIS-PROBE-OK", flush=True)
            time.sleep(60)  # its guest reboots, again and again
        return
    flag = {"cloud-hypervisor": "--api-socket", "firecracker": "--api-sock"}[kind]
    path = arguments[arguments.index(flag) + 1]
    makers[kind](Path(directory), Path(path)).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
