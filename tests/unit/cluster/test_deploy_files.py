"""Deployment files against what they name: options, commands of Ray, Kubernetes kinds, checkout.

The schema below is written down from KubeRay's and Kubernetes' definitions, for the fields used
here. Not covered: applying a manifest to a Kubernetes cluster, building the image.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE, create_package
from ray.runtime_env import RuntimeEnv

from cluster.onray.placement import ROUTER, explain, needs_of
from cluster.plan import ServicePlan
from pdserve.types import Role
from support.deploy_files import (
    DEPLOY,
    EXAMPLES,
    bundles_of,
    commands_in,
    dockerfile,
    manifests,
    nodes_of,
    ray_start,
    served,
    submission,
    the,
)
from support.source_tree import PACKAGES, ROOT

NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITIES = {
    "type": "object",
    "additionalProperties": {"type": "string", "pattern": "^[0-9]+(m|Mi|Gi)?$"},
    "propertyNames": {"enum": ["cpu", "memory", "nvidia.com/gpu"]},
}


def of(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object with these fields and no other."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def many(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


COUNT = {"type": "integer", "minimum": 0}
WORDS = many({"type": "string"})
KEY_REF = of({"secretKeyRef": of({"name": NAME, "key": {"type": "string"}})})
ENV = {"anyOf": [of({"name": {"type": "string"}, "value": {"type": "string"}}),
                 of({"name": {"type": "string"}, "valueFrom": KEY_REF})]}  # fmt: skip
CONTAINER = of(
    {"name": NAME, "image": {"type": "string"}},
    {
        "ports": many(of({"name": {**NAME, "maxLength": 15}, "containerPort": COUNT})),
        "env": many(ENV),
        "command": WORDS,
        "args": WORDS,
        "resources": of({"limits": QUANTITIES, "requests": QUANTITIES}),
        "volumeMounts": many(of({"name": NAME, "mountPath": {"type": "string"}})),
    },
)
POD = of(
    {"spec": of(
        {"containers": many(CONTAINER)},
        {
            "restartPolicy": {"enum": ["OnFailure", "Never"]},
            "terminationGracePeriodSeconds": COUNT,
            "nodeSelector": TEXTS,
            "securityContext": of({"fsGroup": COUNT}),
            "volumes": many(of({"name": NAME, "emptyDir": of({})})),
        },
    )}
)  # fmt: skip
RAY_CLUSTER = of(
    {
        "rayVersion": {"type": "string"},
        "headGroupSpec": of({"rayStartParams": TEXTS, "template": POD}),
        "workerGroupSpecs": many(
            of({"groupName": NAME, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT,
                "rayStartParams": TEXTS, "template": POD})
        ),
    },
    {"authOptions": of({"mode": {"enum": ["token", "disabled"]}})},
)  # fmt: skip
SPECS = {
    ("ray.io/v1", "RayCluster"): RAY_CLUSTER,
    ("ray.io/v1", "RayJob"): of(
        {
            "entrypoint": {"type": "string"},
            "runtimeEnvYAML": {"type": "string"},
            "rayClusterSpec": RAY_CLUSTER,
        },
        {"shutdownAfterJobFinishes": {"type": "boolean"}, "ttlSecondsAfterFinished": COUNT},
    ),
    ("batch/v1", "Job"): of({"template": POD}, {"backoffLimit": COUNT}),
    ("v1", "Service"): of(
        {"selector": TEXTS,
         "ports": many(of({"name": NAME, "port": COUNT, "targetPort": COUNT}))}
    ),
}  # fmt: skip
MANIFESTS = sorted(path.name for path in DEPLOY.glob("kuberay-*.yaml"))
TOMLS = sorted(path.name for path in EXAMPLES.glob("ray-*.toml"))


def test_there_are_the_files_that_are_promised() -> None:
    assert TOMLS == ["ray-1p1d.toml", "ray-2p6d.toml", "ray-4-nodes.toml"]
    assert MANIFESTS == ["kuberay-job.yaml", "kuberay-service.yaml"]


@pytest.mark.parametrize("name", TOMLS)
def test_the_command_in_an_example_serves_that_example(name: str) -> None:
    (words,) = commands_in((EXAMPLES / name).read_text(), "ray job submit")
    asked = submission(words)
    assert asked["working_dir"] == "."
    assert json.loads(asked["runtime_env_json"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "60"
    plan = served(asked["entrypoint"])
    assert plan.serve.launcher == "ray"
    assert f"cluster/examples/{name}" in asked["entrypoint"]
    assert bundles_of(plan)


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_object_of_a_manifest_has_the_form_of_its_kind(name: str) -> None:
    for each in manifests(name):
        kind = (each["apiVersion"], each["kind"])
        schema = of({
            "apiVersion": {"const": kind[0]}, "kind": {"const": kind[1]},
            "metadata": of({"name": NAME}), "spec": SPECS[kind],
        })  # fmt: skip
        jsonschema.validate(each, schema)


def test_the_schema_refuses_what_is_wrong() -> None:
    (job, _) = manifests("kuberay-job.yaml")
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    with pytest.raises(jsonschema.ValidationError, match="0 is not of type 'string'"):
        jsonschema.validate(job["spec"], SPECS["ray.io/v1", "RayJob"])


def started_by(name: str) -> tuple[ServicePlan, dict[str, Any], dict[str, str]]:
    """The plan a manifest starts, the spec of the cluster it runs on, variables of the job."""
    objects = manifests(name)
    if name == "kuberay-job.yaml":
        spec = the("RayJob", objects)["spec"]
        variables = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
        return served(shlex.split(spec["entrypoint"])), spec["rayClusterSpec"], variables
    (container,) = the("Job", objects)["spec"]["template"]["spec"]["containers"]
    asked = submission([*container["command"], *container["args"]])
    variables = json.loads(asked["runtime_env_json"])["env_vars"]
    return served(asked["entrypoint"]), the("RayCluster", objects)["spec"], variables


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_starts_a_service_that_its_cluster_has_room_for(name: str) -> None:
    plan, cluster, variables = started_by(name)
    assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) > plan.process.drain_grace_s
    assert plan.serve.launcher == "ray"
    assert not plan.ray.upload, "the image has the code"
    assert explain(bundles_of(plan), nodes_of(cluster), plan.ray.strategy) == []
    assert needs_of(plan)[Role.PREFILL.value].gpus == 1
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        ray_start(["ray", "start", *(f"--{k}={v}" for k, v in group["rayStartParams"].items())])


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_service_of_a_manifest_leads_to_the_router(name: str) -> None:
    plan, cluster, _ = started_by(name)
    service = the("Service", manifests(name))["spec"]
    assert {port["targetPort"] for port in service["ports"]} == {
        plan.router.http_port, plan.router.grpc_port,
    }  # fmt: skip
    assert service["selector"]["ray.io/node-type"] == "head"
    assert "node:__internal_head__" in needs_of(plan)[ROUTER].amounts()
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert {port["targetPort"] for port in service["ports"]} <= {
        port["containerPort"] for port in head["ports"]
    }


@pytest.mark.parametrize("name", MANIFESTS)
def test_clusters_ask_for_a_token(name: str) -> None:
    assert started_by(name)[1]["authOptions"]["mode"] == "token"


def test_a_service_that_stays_is_detached_and_its_start_has_the_token_of_its_cluster() -> None:
    objects = manifests("kuberay-service.yaml")
    plan, _, _ = started_by("kuberay-service.yaml")
    assert plan.ray.detached
    name = the("RayCluster", objects)["metadata"]["name"]
    (container,) = the("Job", objects)["spec"]["template"]["spec"]["containers"]
    env = {each["name"]: each for each in container["env"]}
    assert env["RAY_AUTH_MODE"]["value"] == "token"
    assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == name
    assert f"http://{name}-head-svc:8265" in container["args"]
    assert the("Service", objects)["spec"]["selector"]["ray.io/cluster"] == name


def test_manifests_name_the_pinned_ray() -> None:
    pins = (ROOT / "constraints.txt").read_text()
    for name in MANIFESTS:
        assert f"\nray=={started_by(name)[1]['rayVersion']}\n" in pins


def test_the_image_copies_what_there_is_and_runs_what_there_is() -> None:
    instructions = list(dockerfile(DEPLOY / "Dockerfile"))
    copied = [
        word for each in instructions if each.name == "COPY" for word in each.text.split()[:-1]
    ]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert set(PACKAGES) <= set(copied)
    sent = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{Path(name).parts[0]}" for name in copied} <= set(sent)
    runs = " && ".join(each.text for each in instructions if each.name == "RUN")
    targets = re.findall(r"&& +make ([a-z][a-z-]*)", runs)
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (ray,) = re.findall(r'"(ray\[[a-z]+\])"', runs)
    assert any(asked.startswith(ray) for asked in project["optional-dependencies"]["ray"])
    (base,) = (each.text for each in instructions if each.name == "FROM")
    version = tuple(int(part) for part in re.findall(r"python:(\d+)\.(\d+)", base)[0])
    assert version >= (3, 11)
    assert any(each.name == "WORKDIR" and each.text == "/opt/pdserve" for each in instructions)


def test_the_environment_by_pip_installs_the_upload_in_pinned_versions() -> None:
    path = DEPLOY / "runtime-env-pip.yaml"
    (words,) = commands_in(path.read_text(), "ray job submit")
    asked = submission(words)
    assert ROOT / asked["runtime_env"] == path
    assert served(asked["entrypoint"]).serve.launcher == "ray"
    environment = RuntimeEnv(**yaml.safe_load(path.read_text()))
    upload = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
    assert environment.pip_config()["packages"] == [f"-c {upload}/constraints.txt", upload]
    assert (ROOT / "constraints.txt").exists()
    assert int(environment.env_vars()["RAY_JOB_STOP_WAIT_TIME_S"]) == 60


def test_an_upload_has_the_code_and_little_else(tmp_path: Path) -> None:
    archive = tmp_path / "upload.zip"
    create_package(str(ROOT), archive, include_gitignore=True, excludes=[])
    names = set(zipfile.ZipFile(archive).namelist())
    assert {
        "cluster/__main__.py", "cluster/examples/ray-1p1d.toml", "pdserve/v1/types_pb2.py",
        "engine/native/forward.c", "pyproject.toml",
    } <= names  # fmt: skip
    tops = {name.split("/")[0] for name in names}
    assert not tops & {".git", ".venv", "tests", "docs", "benchmarks", "proto"}
    assert archive.stat().st_size < GCS_STORAGE_MAX_SIZE / 100
