"""Strict validation: Kubernetes' own schemas, and those of custom resource definitions."""

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes_validate.utils import validate as validate_builtin

from tests.deploy.rendering import Manifest

# From the first with preStop.sleep switched on by default to the newest that is known.
VERSIONS = ("1.30", "1.33", "1.37")
CRDS_VARIABLE = "LOKR_TEST_CRDS"
BUILTIN_GROUPS = frozenset({"networking.k8s.io", "rbac.authorization.k8s.io"})  # with a dot
SCHEMALESS = frozenset({("keda.sh/v1alpha1", "ScaledObject")})  # checked by a test of its own

Kinds = Mapping[tuple[str, str], Mapping[str, Any]]  # schemas by apiVersion and kind


def load_definitions() -> Kinds:
    """Return a strict schema for each version of each custom resource definition.

    They are read from the folder that LOKR_TEST_CRDS names; without it the test is skipped.
    """
    folder = os.environ.get(CRDS_VARIABLE)
    if folder is None:
        pytest.skip(f"{CRDS_VARIABLE} names no folder of custom resource definitions")
    kinds: dict[tuple[str, str], Mapping[str, Any]] = {}
    for path in sorted(Path(folder).glob("*.yaml")):
        definition = yaml.safe_load(path.read_text())["spec"]
        for version in definition["versions"]:
            key = f"{definition['group']}/{version['name']}", definition["names"]["kind"]
            kinds[key] = _strict(version["schema"]["openAPIV3Schema"])
    return kinds


def is_custom(manifest: Manifest) -> bool:
    """Return whether an object is of a custom resource definition."""
    group = manifest["apiVersion"].rpartition("/")[0]
    return "." in group and group not in BUILTIN_GROUPS


def validate(manifest: Manifest, version: str) -> None:
    """Check an object of Kubernetes itself, unknown fields included.

    Raises:
        ValidationError: It is not what that version knows.
    """
    _validate(json.dumps(manifest, sort_keys=True), version)


def validate_custom(manifest: Manifest, kinds: Kinds) -> None:
    """Check an object of a custom resource definition, unknown fields included.

    Raises:
        ValidationError: It is not what its definition knows.
    """
    schema = kinds[manifest["apiVersion"], manifest["kind"]]
    body = {key: value for key, value in manifest.items() if key != "metadata"}
    jsonschema.validate(body, schema)


@cache
def _validate(text: str, version: str) -> None:
    """Check what overlays have in common once."""
    validate_builtin(json.loads(text), version, strict=True)


def _strict(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema that admits no other properties than those that it names."""
    copy = {key: _strict_value(key, value) for key, value in schema.items()}
    if "properties" in copy and "additionalProperties" not in copy:
        copy["additionalProperties"] = bool(copy.get("x-kubernetes-preserve-unknown-fields"))
    return copy


def _strict_value(key: str, value: Any) -> Any:
    match key, value:
        case ("properties", dict()):
            return {name: _strict(each) for name, each in value.items()}
        case ("items" | "additionalProperties", dict()):
            return _strict(value)
        case _:
            return value
