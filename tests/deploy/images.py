"""The image, built without an engine and run as a pod would run it."""

import configparser
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deploy.programs import DEPLOY, require, succeed

TAG = "localhost/lokr-serve:test"
BUILD_SECONDS = 1200.0
FREE_PORTS = ("--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0")
# In a mount namespace of its own: the root read-only, a writable /tmp, and data to read.
RUN = """
set -e
root=$1 data=$2
shift 2
mount --bind "$root" "$root"
mount --bind "$data" "$root/srv"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -o remount,bind,ro "$root"
exec chroot --userspec=10001:10001 "$root" "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image in a storage of its own."""

    environment: Mapping[str, str]  # that leads buildah to the storage

    def config(self) -> dict[str, Any]:
        """Return what the image says of itself."""
        description = json.loads(self._buildah("inspect", "--type", "image", TAG))
        config: dict[str, Any] = description["Docker"]["config"]
        return config

    @contextmanager
    def run(self, data: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
        """Run its entry point on ``data``, which it finds in /srv; it is killed at the end."""
        config = self.config()
        container = self._buildah("from", "--pull-never", TAG)
        root = self._buildah("mount", container)
        command = ["env", "-i", *config["Env"], *config["Entrypoint"], *arguments]
        with subprocess.Popen(
            [require("unshare"), "--mount", "sh", "-c", RUN, "sh", root, str(data), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()
        self._buildah("umount", container)

    def remove(self) -> None:
        """Remove it, and what it was built on."""
        self._buildah("rm", "--all")
        self._buildah("rmi", "--all", "--force")

    def _buildah(self, *arguments: str) -> str:
        outcome = subprocess.run(
            [require("buildah"), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return outcome.stdout.strip()


@contextmanager
def built(folder: Path) -> Iterator[Image]:
    """Build the image on a base of Debian's packages; all of it is gone at the end.

    Args:
        folder: An empty folder for the storage; it takes a few gigabytes.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PIP_")},
        "STORAGE_DRIVER": "vfs",
        "BUILDAH_ISOLATION": "chroot",
        "CONTAINERS_STORAGE_CONF": str(_storage(folder)),
        "TAG": TAG,
        "BUILD_FLAGS": " ".join(("--pull-never", *_pip_volumes(folder))),
    }
    image = Image(environment=environment)
    try:
        for step in ("base", "build"):
            require("mmdebstrap" if step == "base" else "buildah")
            subprocess.run(
                [DEPLOY / "image" / step], env=environment, check=True, timeout=BUILD_SECONDS
            )
        yield image
    finally:
        image.remove()


def _storage(folder: Path) -> Path:
    file = folder / "storage.conf"
    paths = f'graphroot = "{folder / "graph"}"\nrunroot = "{folder / "run"}"\n'
    file.write_text(f'[storage]\ndriver = "vfs"\n{paths}')
    return file


def _pip_volumes(folder: Path) -> list[str]:
    """Return flags that bring pip's own configuration, and the folders it names, into the build."""
    settings = dict(
        line.partition("=")[::2] for line in succeed("pip", "config", "list").splitlines()
    )
    values = {key.rpartition(".")[2]: value.strip("'") for key, value in settings.items()}
    configuration = configparser.ConfigParser(interpolation=None)
    configuration["global"] = values
    file = folder / "pip.conf"
    with file.open("w") as out:
        configuration.write(out)
    words = [word for value in values.values() for word in value.split()]
    paths = {Path(word) for word in words if word.startswith("/") and Path(word).exists()}
    # An index on disk points to files beside it.
    indexes = {Path(word.removeprefix("file://")) for word in words if word.startswith("file://")}
    folders = paths | {path.parent for path in indexes if path.exists()}
    mounts = {file: Path("/etc/pip.conf"), **{path: path for path in sorted(folders)}}
    return [f"--volume={source}:{target}:ro" for source, target in mounts.items()]
