"""The objects that ``kubectl kustomize`` makes of overlays and components."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from tests.deploy.programs import DEPLOY, succeed

KUSTOMIZE = DEPLOY / "kustomize"
OVERLAYS = tuple(sorted(path.name for path in (KUSTOMIZE / "overlays").iterdir()))
COMPONENTS = tuple(sorted(path.name for path in (KUSTOMIZE / "components").iterdir()))
LOADER = yaml.CSafeLoader  # a page of YAML takes the other one a tenth of a second

Manifest = dict[str, Any]  # of an object of Kubernetes, as YAML has it


def render(resource: str, components: tuple[str, ...] = ()) -> list[Manifest]:
    """Return the objects of an overlay, as a user of it would write one.

    Args:
        resource: ``base``, or ``overlays/NAME``.
        components: Names of components.
    """
    return list(yaml.load_all(_rendered(resource, components), Loader=LOADER))


def render_folder(folder: Path) -> list[Manifest]:
    """Return the objects of a kustomization as it is."""
    return list(yaml.load_all(succeed("kubectl", "kustomize", folder), Loader=LOADER))


@cache
def _rendered(resource: str, components: tuple[str, ...]) -> str:
    with TemporaryDirectory() as folder:
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": "lokr-serve",
            "resources": [os.path.relpath(KUSTOMIZE / resource, folder)],
            "components": [
                os.path.relpath(KUSTOMIZE / "components" / name, folder) for name in components
            ],
        }
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return succeed("kubectl", "kustomize", folder)


def pick(objects: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """Return the one object of a kind and a name, which may end in a hash."""
    found = [
        each
        for each in objects
        if each["kind"] == kind
        and (each["metadata"]["name"] == name or each["metadata"]["name"].startswith(f"{name}-"))
    ]
    exact = [each for each in found if each["metadata"]["name"] == name]
    (one,) = exact or found
    return one


def pod_of(objects: Sequence[Manifest]) -> Manifest:
    """Return the pod's specification of the server's Deployment."""
    spec: Manifest = pick(objects, "Deployment", "lokr-serve")["spec"]["template"]["spec"]
    return spec


def container_of(objects: Sequence[Manifest]) -> Manifest:
    """Return the server's container."""
    (container,) = pod_of(objects)["containers"]
    return dict(container)


def environment_of(objects: Sequence[Manifest]) -> dict[str, str]:
    """Return the variables of the server's container; what a field gives stands as 1."""
    return {each["name"]: each.get("value", "1") for each in container_of(objects)["env"]}
