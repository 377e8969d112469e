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
    root.chmod(0o700)
    os.chown(root, flags.uid, flags.gid)
    os.chdir(root)
    os.setgroups([])
    os.setgid(flags.gid)
    os.setuid(flags.uid)
    program = root / flags.exec_file.name
    argv = [str(program), f"--id={flags.id}", "--start-time-us=1", *flags.rest]
    os.execve(program, argv, {"FAKE_JAIL": str(root), "PATH": os.defpath})


if __name__ == "__main__":
    main()
