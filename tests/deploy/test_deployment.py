"""What the replicas' Deployment and what stands around it promise."""

import tomllib
from pathlib import Path

import pytest
import yaml

from lokr_serve.adapters.manifest.reading import read_manifest
from lokr_serve.app import TAKE_DOWN_SECONDS
from lokr_serve.config import ENVIRONMENT_PREFIX, Settings, load_settings
from lokr_serve.v1 import adapters_pb2, images_pb2, text_pb2
from tests.deploy.names import served_names
from tests.deploy.rendering import (
    COMPONENTS,
    OVERLAYS,
    Manifest,
    container_of,
    environment_of,
    pick,
    pod_of,
    render,
)

SPARE_SECONDS = 10  # at least, between what the server may take and what it is given
RESOURCES = ("base", *(f"overlays/{name}" for name in OVERLAYS))
BYTES = {"Gi": 2**30, "Mi": 2**20}
READING = frozenset({"GetAdapter", "ListAdapters"})


def settings_of(objects: list[Manifest], folder: Path) -> Settings:
    """Load the settings as the container would, without what a Secret adds."""
    file = folder / "settings.toml"
    file.write_text(pick(objects, "ConfigMap", "lokr-serve-settings")["data"]["settings.toml"])
    return load_settings({}, environment_of(objects), file)


@pytest.mark.parametrize("components", [(), COMPONENTS], ids=["alone", "all"])
@pytest.mark.parametrize("resource", RESOURCES)
def test_the_settings_load(tmp_path: Path, resource: str, components: tuple[str, ...]) -> None:
    """An unknown setting stops the start, and with it a rollout."""
    objects = render(resource, components)
    settings = settings_of(objects, tmp_path)
    names = environment_of(objects)

    ports = {each["name"]: each["containerPort"] for each in container_of(objects)["ports"]}
    assert settings.server.listen == f"0.0.0.0:{ports['inference']}"
    assert settings.server.admin_listen == f"0.0.0.0:{ports['admin']}"
    assert settings.server.metrics_listen == f"0.0.0.0:{ports['metrics']}"
    assert all(name.startswith(ENVIRONMENT_PREFIX) for name in names)
    assert settings.security.has_credentials == (components != ())


@pytest.mark.parametrize("resource", RESOURCES)
def test_a_replica_has_time_to_leave(tmp_path: Path, resource: str) -> None:
    """Killed early, it would break the streams that it was draining."""
    objects = render(resource)
    server = settings_of(objects, tmp_path).server
    pre_stop = container_of(objects)["lifecycle"]["preStop"]["sleep"]["seconds"]

    needed = pre_stop + server.lame_duck_seconds + server.drain_seconds + TAKE_DOWN_SECONDS
    assert pod_of(objects)["terminationGracePeriodSeconds"] >= needed + SPARE_SECONDS


@pytest.mark.parametrize("resource", RESOURCES)
def test_gateways_see_a_replica_leave_while_it_still_serves(tmp_path: Path, resource: str) -> None:
    """The lame duck lasts longer than the probes need to tell."""
    objects = render(resource)
    probe = container_of(objects)["readinessProbe"]

    told_after = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    assert settings_of(objects, tmp_path).server.lame_duck_seconds >= told_after


@pytest.mark.parametrize("resource", RESOURCES)
def test_the_budgets_fit_in_the_memory_of_a_replica(tmp_path: Path, resource: str) -> None:
    """On a CPU all of them are the container's memory, and half of it is for the model."""
    objects = render(resource)
    adapters = settings_of(objects, tmp_path).adapters
    limit = container_of(objects)["resources"]["limits"]["memory"]

    budgets = adapters.device_bytes + adapters.merge_cache_bytes + adapters.bank_bytes
    assert budgets + adapters.host_bytes <= int(limit[:-2]) * BYTES[limit[-2:]] / 2


@pytest.mark.parametrize("components", [(), COMPONENTS], ids=["alone", "all"])
def test_every_pod_keeps_the_restricted_standard(components: tuple[str, ...]) -> None:
    """The overlays' namespace refuses pods that do not."""
    objects = render("base", components)
    pods = [each["spec"]["template"]["spec"] for each in objects if each["kind"] == "Deployment"]

    for pod in pods:
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
    assert pod_of(objects)["automountServiceAccountToken"] is False


def test_a_list_of_the_environment_is_parted_at_its_commas(tmp_path: Path) -> None:
    """Buckets differ between overlays, and a variable is what an overlay patches."""
    settings = settings_of(render("base", ("object-store",)), tmp_path)
    variables = {
        "LOKR_SERVE__ADAPTERS__REMOTE": "s3://a/,s3://b/",
        "LOKR_SERVE__ADAPTERS__FETCHED": "fetched",
        "LOKR_SERVE__MODEL__PATH": "model",
    }

    assert settings.adapters.remote == ("s3://adapters/",)
    assert load_settings({}, variables).adapters.remote == ("s3://a/", "s3://b/")


def test_probes_ask_over_http_whatever_the_grpc_ports_speak() -> None:
    """The kubelet's gRPC probes know no TLS and no credentials."""
    container = container_of(render("base", COMPONENTS))

    paths = {
        name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")
    }
    assert paths == {
        "startup": {"path": "/livez", "port": "metrics"},
        "liveness": {"path": "/livez", "port": "metrics"},
        "readiness": {"path": "/readyz", "port": "metrics"},
    }


def test_the_manifest_is_mounted_as_a_folder(tmp_path: Path) -> None:
    """A subPath would keep the file that it saw first for the life of the pod."""
    objects = render("base")
    (mount,) = (m for m in container_of(objects)["volumeMounts"] if m["name"] == "declared")
    manifest = settings_of(objects, tmp_path).adapters.manifest
    declared = pick(objects, "ConfigMap", "lokr-serve-adapters")["data"]

    assert "subPath" not in mount
    assert manifest is not None
    assert str(manifest.parent) == mount["mountPath"]
    assert read_manifest(declared[manifest.name].encode()).adapters == {}


def test_only_the_inference_port_is_for_gateways() -> None:
    """What changes adapters must not be a route away."""
    objects = render("base", COMPONENTS)
    ports = {
        each["metadata"]["name"]: [port["targetPort"] for port in each["spec"]["ports"]]
        for each in objects
        if each["kind"] == "Service"
    }

    assert ports == {
        "lokr-serve": ["inference"],
        "lokr-serve-headless": ["inference"],
        "lokr-serve-admin": ["admin"],
        "lokr-serve-picker": ["picks"],
    }


def test_each_port_is_open_to_its_own_callers() -> None:
    """The network keeps what the listeners separate."""
    policy = pick(render("base"), "NetworkPolicy", "lokr-serve")["spec"]
    callers = {rule["ports"][0]["port"]: rule["from"] for rule in policy["ingress"]}

    inference = {"matchLabels": {"lokr-serve/access": "inference"}}
    both = {"key": "lokr-serve/access", "operator": "In", "values": ["inference", "admin"]}
    assert callers["inference"] == [
        {"namespaceSelector": inference},
        {"podSelector": {"matchExpressions": [both]}},
    ]
    assert callers["admin"] == [{"podSelector": {"matchLabels": {"lokr-serve/access": "admin"}}}]
    assert callers["metrics"][1:] == [{"namespaceSelector": inference}]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy


def test_routes_lead_to_methods_that_there_are_and_that_change_nothing() -> None:
    """A route to a method that was renamed is a call that ends as UNIMPLEMENTED."""
    objects = render("base", COMPONENTS)
    services = {
        service.full_name: set(service.methods_by_name)
        for file in (adapters_pb2, images_pb2, text_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
    }
    routed = set(_grpc_matches(objects)) | set(_http_matches(objects))

    own = {(service, method) for service, method in routed if service != "grpc.health.v1.Health"}
    assert own == {
        ("lokr_serve.v1.TextService", None),
        ("lokr_serve.v1.ImageService", None),
        *(("lokr_serve.v1.AdapterService", method) for method in READING),
    }
    assert all(service in services for service, _ in own)
    assert services["lokr_serve.v1.AdapterService"] >= READING


@pytest.mark.parametrize("resource", RESOURCES)
def test_the_variables_that_kubernetes_injects_are_no_settings(
    tmp_path: Path, resource: str
) -> None:
    """A Service that is called lokr-serve brings LOKR_SERVE_PORT and the like into pods."""
    objects = render(resource)
    injected = {}
    for service in (each for each in objects if each["kind"] == "Service"):
        prefix = service["metadata"]["name"].upper().replace("-", "_")
        injected[f"{prefix}_SERVICE_HOST"] = "10.0.0.1"
        for port in service["spec"]["ports"]:
            number = str(port["port"])
            injected[f"{prefix}_SERVICE_PORT"] = number
            injected[f"{prefix}_SERVICE_PORT_{port['name'].upper()}"] = number
            injected[f"{prefix}_PORT"] = f"tcp://10.0.0.1:{number}"
            injected[f"{prefix}_PORT_{number}_TCP"] = f"tcp://10.0.0.1:{number}"
            injected[f"{prefix}_PORT_{number}_TCP_ADDR"] = "10.0.0.1"
    text = pick(objects, "ConfigMap", "lokr-serve-settings")["data"]["settings.toml"]
    file = tmp_path / "settings.toml"
    file.write_text(text)

    assert "LOKR_SERVE_PORT" in injected
    assert load_settings({}, injected, file) == Settings.model_validate(tomllib.loads(text))


def test_the_picker_reads_metrics_that_there_are() -> None:
    """Under another name it would see every replica as idle and empty."""
    objects = render("base", ("inference-pool",))
    file = pick(objects, "ConfigMap", "lokr-serve-picker")["data"]["picker-config.yaml"]
    config = yaml.safe_load(file)
    plugins = {each["type"]: each.get("parameters") for each in config["plugins"]}
    (engine,) = plugins["core-metrics-extractor"]["engineConfigs"]
    labels = pick(objects, "Deployment", "lokr-serve")["spec"]["template"]["metadata"]["labels"]

    assert labels["llm-d.ai/engine-type"] == engine["name"]
    specifications = {key: value for key, value in engine.items() if key.endswith("Spec")}
    assert len(specifications) == 5
    assert set(specifications.values()) <= served_names()
    assert plugins["metrics-data-source"] == {"port": 9090}
    used = {each["pluginRef"] for each in config["schedulingProfiles"][0]["plugins"]}
    assert used <= set(plugins)


def _grpc_matches(objects: list[Manifest]) -> list[tuple[str, str | None]]:
    route = pick(objects, "GRPCRoute", "lokr-serve")
    methods = (match["method"] for rule in route["spec"]["rules"] for match in rule["matches"])
    return [(each["service"], each.get("method")) for each in methods]


def _http_matches(objects: list[Manifest]) -> list[tuple[str, str | None]]:
    route = pick(objects, "HTTPRoute", "lokr-serve")
    paths = (match["path"] for rule in route["spec"]["rules"] for match in rule["matches"])
    parts = (each["value"].strip("/").split("/") for each in paths)
    return [(each[0], each[1] if len(each) > 1 else None) for each in parts]
