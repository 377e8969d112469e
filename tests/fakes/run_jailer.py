"""A stand-in for Firecracker's jailer: it prepares the same directory, and runs what it is told.

It changes no root, because there is no Python in the jail: the fake Firecracker sees to it
itself that it is told of nothing outside.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--id", required=True)
    parser.add_argument("--exec-file", required=True, type=Path)
    parser.add_argument("--uid", required=True, type=int)
    parser.add_argument("--gid", required=True, type=int)
    parser.add_argument("--chroot-base-dir", required=True, type=Path)
    parser.add_argument("rest", nargs="*")
    flags = parser.parse_args()
    if not flags.id.replace("-", "").isalnum() or len(flags.id) > 64:
        parser.error("invalid id")
    if "firecracker" not in flags.exec_file.name:
        parser.error("the executable is not called firecracker")
    root = flags.chroot_base_dir / flags.exec_file.name / flags.id / "root"
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(flags.exec_file, root)
    for folder in (root, root / "dev", root / "dev" / "net", root / "run"):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o700)
        os.chown(folder, flags.uid, flags.gid)
    with (root / f"{flags.exec_file.name}.pid").open("x") as file:
        file.write(str(os.getpid()))
    os.chdir(root)
    os.setgroups([])
    os.setgid(flags.gid)
    os.setuid(flags.uid)
    program = root / flags.exec_file.name
    times = ["--start-time-us", "1", "--start-time-cpu-us", "1", "--parent-cpu-time-us", "1"]
    argv = [str(program), "--id", flags.id, *times, *flags.rest]
    os.execve(program, argv, {"FAKE_JAIL": str(root), "PATH": os.defpath})


if __name__ == "__main__":
    main()
