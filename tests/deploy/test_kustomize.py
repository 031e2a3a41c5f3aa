"""Every overlay with every component renders to what Kubernetes and the definitions know."""

import copy
import os
from pathlib import Path

import jsonschema
import pytest
import yaml
from kubernetes_validate.utils import ValidationError

from tests.deploy.rendering import (
    COMPONENTS,
    KUSTOMIZE,
    OVERLAYS,
    Manifest,
    container_of,
    pick,
    render,
    render_folder,
)
from tests.deploy.schemas import (
    SCHEMALESS,
    VERSIONS,
    is_custom,
    load_definitions,
    validate,
    validate_custom,
)

RESOURCES = ("base", *(f"overlays/{name}" for name in OVERLAYS))


@pytest.mark.parametrize("components", [(), COMPONENTS], ids=["alone", "all"])
@pytest.mark.parametrize("resource", RESOURCES)
def test_what_is_rendered_is_known_to_kubernetes(
    resource: str, components: tuple[str, ...]
) -> None:
    """A misspelt field is dropped by the API server without a word, and missed in production."""
    builtin = [each for each in render(resource, components) if not is_custom(each)]

    assert builtin
    for manifest in builtin:
        for version in VERSIONS:
            validate(manifest, version)


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_component_is_known_to_kubernetes_by_itself(component: str) -> None:
    """A patch may lean on what another component brings, and break without it."""
    for manifest in render("base", (component,)):
        if not is_custom(manifest):
            validate(manifest, VERSIONS[0])


@pytest.mark.parametrize("resource", RESOURCES)
def test_custom_resources_are_what_their_definitions_know(resource: str) -> None:
    """Routes, pools and monitors are checked as strictly as the rest."""
    kinds = load_definitions()
    objects = render(resource, COMPONENTS)
    custom = [each for each in objects if is_custom(each)]
    known = [each for each in custom if (each["apiVersion"], each["kind"]) not in SCHEMALESS]

    assert {each["kind"] for each in known} == {
        "GRPCRoute",
        "HTTPRoute",
        "InferencePool",
        "PodMonitor",
    }
    for manifest in known:
        validate_custom(manifest, kinds)


def test_a_misspelt_field_of_kubernetes_is_caught() -> None:
    """The check above is worth what it catches."""
    deployment = pick(render("base"), "Deployment", "lokr-serve")
    probe = container_of([deployment])["readinessProbe"]
    probe["periodSecond"] = probe.pop("periodSeconds")

    with pytest.raises(ValidationError, match="periodSecond"):
        validate(deployment, VERSIONS[0])


@pytest.mark.parametrize(
    ("kind", "path", "wrong"),
    [
        ("GRPCRoute", ("spec", "rules", 0, "matches", 0, "method"), "services"),
        ("HTTPRoute", ("spec", "rules", 0, "timeouts"), "requests"),
        ("InferencePool", ("spec", "endpointPickerRef"), "failuremode"),
        ("PodMonitor", ("spec", "podMetricsEndpoints", 0), "intervall"),
    ],
)
def test_a_misspelt_field_of_a_custom_resource_is_caught(
    kind: str, path: tuple[str | int, ...], wrong: str
) -> None:
    """Definitions admit unknown fields, and the API server prunes them: we do not."""
    kinds = load_definitions()
    manifest = _first_of(kind, render("base", COMPONENTS))
    place = manifest
    for step in path:
        place = place[step]  # type: ignore[index] # a list or a dictionary of YAML
    place[wrong] = "x"

    with pytest.raises(jsonschema.ValidationError, match=wrong):
        validate_custom(manifest, kinds)


def test_the_scaled_object_asks_for_what_there_is() -> None:
    """No definition of KEDA's is at hand, so its fields are checked one by one."""
    objects = render("base", ("keda",))
    scaled = _first_of("ScaledObject", objects)["spec"]
    (trigger,) = scaled["triggers"]

    assert set(scaled) == {
        "scaleTargetRef",
        "minReplicaCount",
        "maxReplicaCount",
        "fallback",
        "advanced",
        "triggers",
    }
    assert scaled["scaleTargetRef"] == {"name": "lokr-serve"}
    assert 0 < scaled["minReplicaCount"] < scaled["maxReplicaCount"]
    assert set(scaled["fallback"]) == {"failureThreshold", "replicas"}
    assert trigger["type"] == "prometheus"
    assert set(trigger["metadata"]) == {"serverAddress", "query", "threshold"}
    assert float(trigger["metadata"]["threshold"]) > 0
    assert "replicas" not in pick(objects, "Deployment", "lokr-serve")["spec"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_renders_as_it_is(overlay: str) -> None:
    """``kubectl apply -k`` takes the folder itself, with its namespace."""
    objects = render_folder(KUSTOMIZE / "overlays" / overlay)

    spaces = {each["metadata"].get("namespace") for each in objects if each["kind"] != "Namespace"}
    assert spaces == {"lokr-serve"}


def test_a_changed_setting_restarts_replicas_and_a_changed_manifest_does_not(
    tmp_path: Path,
) -> None:
    """Settings are read once, at start; the manifest is reconciled while replicas serve."""
    volumes = pick(render("base"), "Deployment", "lokr-serve")
    names = {
        each["name"]: each["configMap"]["name"]
        for each in volumes["spec"]["template"]["spec"]["volumes"]
        if "configMap" in each
    }

    assert names["declared"] == "lokr-serve-adapters"
    assert names["settings"].startswith("lokr-serve-settings-")


def test_a_manifest_of_ones_own_takes_the_place_of_the_empty_one(tmp_path: Path) -> None:
    """It is what an overlay of one's own brings first; its name has to stay what it is."""
    (tmp_path / "adapters.yaml").write_text("adapters: [{id: poet}]")
    kustomization = {
        "namespace": "lokr-serve",
        "resources": [os.path.relpath(KUSTOMIZE / "overlays" / "gpu", tmp_path)],
        "configMapGenerator": [
            {"name": "lokr-serve-adapters", "behavior": "merge", "files": ["adapters.yaml"]}
        ],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    declared = pick(render_folder(tmp_path), "ConfigMap", "lokr-serve-adapters")

    assert declared["metadata"]["name"] == "lokr-serve-adapters"
    assert declared["data"] == {"adapters.yaml": "adapters: [{id: poet}]"}


def _first_of(kind: str, objects: list[Manifest]) -> Manifest:
    return copy.deepcopy(next(each for each in objects if each["kind"] == kind))
