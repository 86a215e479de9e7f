"""The files of deploy/, the Dockerfile and compose.yaml: their syntax, and that they agree with the service."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from starlette.testclient import TestClient

from rediffuse.cli import app as cli
from rediffuse.serving.app import create_app
from rediffuse.serving.telemetry import Telemetry

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def resources():
    found = list(yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text()))
    assert all({"apiVersion", "kind", "metadata"} <= one.keys() for one in found)
    return {one["kind"]: one for one in found}


@pytest.fixture(scope="module")
def pod(resources):
    return resources["Deployment"]["spec"]["template"]["spec"]


def serve_options():
    command = typer.main.get_command(cli).commands["serve"]
    return {name: option for option in command.params for name in option.opts}


def test_the_resources_refer_to_each_other(resources, pod):
    (container,) = pod["containers"]
    labels = resources["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert (
        resources["Deployment"]["spec"]["selector"]["matchLabels"] == labels == resources["Service"]["spec"]["selector"]
    )
    secret = next(one for one in container["env"] if one["name"] == "REDIFFUSE_TOKEN")["valueFrom"]["secretKeyRef"]
    assert secret["name"] == resources["Secret"]["metadata"]["name"]
    assert len(resources["Secret"]["stringData"][secret["key"]]) >= 16  # what the service accepts
    for one in (container, *pod["initContainers"]):
        assert {mount["name"] for mount in one["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert pod["serviceAccountName"] == resources["ServiceAccount"]["metadata"]["name"]
    autoscaler, budget = resources["HorizontalPodAutoscaler"]["spec"], resources["PodDisruptionBudget"]["spec"]
    target = {name: resources["Deployment"][name] for name in ("apiVersion", "kind")}
    assert autoscaler["scaleTargetRef"] == target | {"name": resources["Deployment"]["metadata"]["name"]}
    assert "replicas" not in resources["Deployment"]["spec"], "each apply would undo the autoscaler"
    assert budget["selector"]["matchLabels"] == labels
    assert 1 <= budget["maxUnavailable"] < autoscaler["minReplicas"] < autoscaler["maxReplicas"]
    # The share of the CPU is one of what is requested.
    assert autoscaler["metrics"][0]["resource"]["name"] in container["resources"]["requests"]
    assert resources["Service"]["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]


def test_ports_paths_and_options_are_those_of_the_service(pod, folders):
    (container,) = pod["containers"]
    options = serve_options()
    port = options["--port"].default
    assert container["ports"][0]["containerPort"] == port
    assert f"EXPOSE {port}\n" in DOCKERFILE
    assert f"127.0.0.1:{port}/ready" in DOCKERFILE
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["rediffuse"]
    assert compose["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert {one for one in container["args"] if one.startswith("--")} <= options.keys()
    with TestClient(create_app(folders[3:4])) as client:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert client.get(container[probe]["httpGet"]["path"]).status_code == 200
            assert container[probe]["httpGet"]["port"] == container["ports"][0]["name"]
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] > options["--timeout"].default + before


def test_the_init_container_fetches_the_run_that_is_served(pod):
    (init,), (container,) = pod["initContainers"], pod["containers"]
    *command, source, folder = init["args"]
    assert command == ["s3", "cp", "--recursive", "--only-show-errors"]
    names = {one["name"]: one["value"] for one in init["env"]}
    assert source == "$(RUN)"
    assert re.fullmatch(r"s3://[a-z0-9.-]+/\S+[^/]", names["RUN"])
    assert folder == container["args"][0]
    mounts = {one["mountPath"]: one for one in init["volumeMounts"]}
    assert "readOnly" not in mounts[str(Path(folder).parent)]
    assert names["HOME"] in mounts, "the file system is read-only elsewhere"
    text = (ROOT / "deploy/kubernetes.yaml").read_text()
    assert f"--containers={init['name']} RUN=" in text


# What the API knows of the fields that we use: field -> fields of its values; None: a value, or a mapping of values.
_LABELLED = {"matchLabels": None}
_CONTAINER = (
    dict.fromkeys(("name", "image", "args"))
    | {
        "env": {"name": None, "value": None, "valueFrom": {"secretKeyRef": {"name": None, "key": None}}},
        "envFrom": {"secretRef": {"name": None, "optional": None}},
        "ports": {"name": None, "containerPort": None},
        "resources": {"requests": {"cpu": None, "memory": None}, "limits": {"cpu": None, "memory": None}},
        "volumeMounts": dict.fromkeys(("name", "mountPath", "readOnly")),
        "lifecycle": {"preStop": {"exec": {"command": None}}},
        "securityContext": dict.fromkeys(("allowPrivilegeEscalation", "readOnlyRootFilesystem"))
        | {"capabilities": {"drop": None}},
    }
    | {
        probe: {"httpGet": {"path": None, "port": None}}
        | dict.fromkeys(("periodSeconds", "failureThreshold", "timeoutSeconds"))
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    }
)
_POD = dict.fromkeys(("serviceAccountName", "automountServiceAccountToken", "terminationGracePeriodSeconds")) | {
    "securityContext": dict.fromkeys(("runAsNonRoot", "runAsUser", "fsGroup")) | {"seccompProfile": {"type": None}},
    "topologySpreadConstraints": dict.fromkeys(("maxSkew", "topologyKey", "whenUnsatisfiable"))
    | {"labelSelector": _LABELLED},
    "initContainers": _CONTAINER,
    "containers": _CONTAINER,
    "volumes": {"name": None, "emptyDir": {"sizeLimit": None}},
}
_FIELDS = {
    ("v1", "Secret"): {"type": None, "stringData": None},
    ("v1", "ServiceAccount"): {},
    ("apps/v1", "Deployment"): {
        "spec": {
            "selector": _LABELLED,
            "strategy": {"rollingUpdate": {"maxUnavailable": None, "maxSurge": None}},
            "template": {"metadata": {"labels": None}, "spec": _POD},
        }
    },
    ("v1", "Service"): {"spec": {"selector": None, "ports": dict.fromkeys(("name", "port", "targetPort"))}},
    ("autoscaling/v2", "HorizontalPodAutoscaler"): {
        "spec": {
            "scaleTargetRef": dict.fromkeys(("apiVersion", "kind", "name")),
            "minReplicas": None,
            "maxReplicas": None,
            "metrics": {
                "type": None,
                "resource": {"name": None, "target": {"type": None, "averageUtilization": None}},
            },
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": None}},
        }
    },
    ("policy/v1", "PodDisruptionBudget"): {"spec": {"maxUnavailable": None, "selector": _LABELLED}},
}
_RESOURCE = {"apiVersion": None, "kind": None, "metadata": {"name": None, "labels": None}}


def test_the_fields_are_those_of_the_api(resources):
    """There is no cluster here to ask. A misspelt field would be dropped by one that does not validate."""

    def check(value, known, path):
        for one in value if isinstance(value, list) else [value]:
            if known is not None:
                assert isinstance(one, dict), path
                assert one.keys() <= known.keys(), f"{path}: {one.keys() - known.keys()}"
                for name, inner in one.items():
                    check(inner, known[name], f"{path}.{name}")

    for kind, one in resources.items():
        check(one, _RESOURCE | _FIELDS[one["apiVersion"], kind], kind)


def test_the_containers_are_restricted(pod):
    (container,) = pod["containers"]
    for one in (container, *pod["initContainers"]):
        assert one["resources"].keys() == {"requests", "limits"}
        assert one["securityContext"] == container["securityContext"]
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILE, flags=re.MULTILINE)
    assert f"--uid {user} " in DOCKERFILE
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (int(user), True)
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert next(one for one in container["volumeMounts"] if one["name"] == "runs")["readOnly"]


def test_the_dashboard_reads_metrics_and_labels_that_the_service_has():
    telemetry, samples = Telemetry(), {}
    for family in telemetry.registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}[family.type]
        samples |= {family.name + suffix: family for suffix in suffixes}
    labels = {
        "rediffuse_" + name: set(getattr(telemetry, attribute)._labelnames) | {"le"}
        for name, attribute in {
            "requests": "requests",
            "request_latency_seconds": "latency",
            "batch_size": "batch_size",
            "waiting_users": "waiting_users",
            "reloads": "reloads",
            "model_info": "model_info",
            "histories_end_seconds": "histories_end",
        }.items()
    }
    dashboard = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries.append(dashboard["templating"]["list"][1]["definition"])
    assert len(queries) > 10
    named = set()
    for query in queries:
        for name, matchers in re.findall(r"\b((?:rediffuse|process)_\w+)(\{[^}]*\})?", query):
            assert name in samples, query
            named.add(samples[name].name)
            if name.startswith("rediffuse"):
                assert set(re.findall(r"(\w+)=", matchers)) <= labels[samples[name].name], query
    assert named >= labels.keys()  # and none of ours is left out


def test_the_dockerfile_installs_dependencies_before_it_copies_sources():
    copy, install = DOCKERFILE.index("COPY src"), DOCKERFILE.index("--requirement requirements.txt")
    assert install < copy
    assert "TORCH_INDEX=https://download.pytorch.org/whl/cpu" in DOCKERFILE
    (script,) = re.findall(r"RUN python -c '([^']*)'", DOCKERFILE)
    command = [sys.executable, "-c", script.replace("\\\n", "")]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    names = {re.match(r"[\w-]+", line).group() for line in listed}
    assert {"hatchling", "torch", "polars", "fastapi", "uvicorn", "prometheus-client", "faiss-cpu"} <= names
