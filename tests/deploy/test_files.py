"""The files of deploy/ hold together: with themselves, with the command line, the settings and the telemetry.

None of this needs a network, a cluster or a container engine; where the programs of those are at hand, they are asked
as well. What the files do is shown by `test_fleet`, on a real server.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outrider import WorkerSettings
from outrider.cli.arguments import parse
from tests.deploy.files import (
    COMPOSE,
    CONTAINERFILE,
    DEPLOY,
    KUBERNETES,
    ROOT,
    UNIT,
    at,
    compose,
    documents,
    instructions,
    manifest,
    manifests,
    outrider_commands,
    seconds,
    unit,
    variables,
)

NEEDED = WorkerSettings().drain_timeout + WorkerSettings().drain_grace
MARGIN = 5.0
"""Seconds for a worker to sign off, after it has drained."""
PATIENCE = 120

OBJECTS = [
    pytest.param(document, id=f"{file}:{document['kind']}") for file, document in manifests() if "metadata" in document
]
PODS = {
    "worker": at(manifest("Deployment"), "spec.template"),
    "doctor": at(manifest("CronJob"), "spec.jobTemplate.spec.template"),
}
CONTAINERS = [(name, container) for name, pod in PODS.items() for container in pod["spec"]["containers"]]

REQUIRED = {
    "Deployment": ("apps/v1", ["spec.selector.matchLabels", "spec.template.spec.containers.0.image"]),
    "PodDisruptionBudget": ("policy/v1", ["spec.selector.matchLabels", "spec.maxUnavailable"]),
    "CronJob": ("batch/v1", ["spec.schedule", "spec.jobTemplate.spec.template.spec.restartPolicy"]),
    "TriggerAuthentication": ("keda.sh/v1alpha1", ["spec.secretTargetRef.0.parameter", "spec.secretTargetRef.0.key"]),
    "ScaledObject": ("keda.sh/v1alpha1", ["spec.scaleTargetRef.name", "spec.triggers.0.metadata.query"]),
    "HorizontalPodAutoscaler": (
        "autoscaling/v2",
        ["spec.scaleTargetRef.apiVersion", "spec.maxReplicas", "spec.metrics.0.external.metric.name"],
    ),
}


def texts(value: Any) -> Iterator[str]:
    """Every text in a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


# --- all of them -------------------------------------------------------------------------------------


def test_every_file_is_one_that_these_tests_read():
    read = {CONTAINERFILE, CONTAINERFILE.with_suffix(".dockerignore"), COMPOSE, UNIT, UNIT.with_name("worker.env")}
    read |= {DEPLOY / "compose" / "app" / "example.py", *KUBERNETES.glob("*.yaml")}
    read |= {DEPLOY / "grafana" / "outrider.json", DEPLOY / "prometheus" / "alerts.yml"}  # by test_dashboard
    there = {path for path in DEPLOY.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert there - read == set()


def commands() -> Iterator[list[str]]:
    services = compose()["services"]
    yield json.loads(dict(instructions())["ENTRYPOINT"])
    yield shlex.split(at(unit(), "Service.ExecStart.0"))
    yield services["worker"]["healthcheck"]["test"]
    for _, container in CONTAINERS:
        yield from ([container["command"]] if "command" in container else [])
        yield from (probe["exec"]["command"] for name, probe in container.items() if name.endswith("Probe"))


@pytest.mark.parametrize("words", list(commands()), ids=lambda words: " ".join(words)[:40])
def test_every_command_is_one_of_the_command_line(words: list[str]):
    found = list(outrider_commands(words))
    assert found
    for arguments in found:
        parse(arguments)


def named_variables() -> Iterator[tuple[str, str]]:
    for name, rest in instructions():
        if name == "ENV":
            yield from (("Containerfile", each.partition("=")[0]) for each in shlex.split(rest))
    for service, what in compose()["services"].items():
        if service != "postgres":  # which is somebody else's image
            yield from ((f"compose {service}", each) for each in what["environment"])
    for pod, container in CONTAINERS:
        yield from ((f"kubernetes {pod}", each["name"]) for each in container["env"])
    for each in unit()["Service"]["Environment"]:
        yield "unit", each.partition("=")[0]
    yield from (("worker.env", each) for each in variables())


def test_every_variable_is_one_that_is_read():
    from psycopg.pq import Conninfo

    page = (ROOT / "docs" / "configuration.md").read_text()
    table = page.partition("\n## Environment variables\n")[2].partition("\n## ")[0]
    read = {name for row in table.splitlines() for name in re.findall(r"`([A-Z_]+)`", row.split(" | ")[0])}
    read |= {each.envvar.decode() for each in Conninfo.get_defaults() if each.envvar} | {"PGPASSFILE", "PATH"}
    assert [each for each in named_variables() if each[1] not in read] == []


def stop_times() -> Iterator[tuple[str, float]]:
    yield "compose", seconds(compose()["services"]["worker"]["stop_grace_period"])
    yield "kubernetes", PODS["worker"]["spec"]["terminationGracePeriodSeconds"]
    yield "unit", seconds(at(unit(), "Service.TimeoutStopSec.0"))
    (told,) = re.findall(r"--stop-timeout (\d+)", CONTAINERFILE.read_text())
    yield "Containerfile", int(told)


@pytest.mark.parametrize(("where", "given"), list(stop_times()), ids=str)
def test_a_worker_has_the_time_to_drain_before_it_is_killed(where: str, given: float):
    assert given >= NEEDED + MARGIN


def test_what_the_files_say_of_that_time_is_so():
    told = [
        int(number)
        for path in DEPLOY.rglob("*")
        if path.suffix != ".pyc" and path.is_file()
        for number in re.findall(r"(\d+) (?:s|seconds) by\s+(?:#\s+)?default", path.read_text())
    ]
    assert told
    assert set(told) == {NEEDED}


def test_no_file_holds_a_password():
    for path in DEPLOY.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert re.findall(r"postgres(?:ql)?://[^\s/@]*:[^\s@]+@", path.read_text()) == [], path
    given = [compose()["services"]["postgres"]["environment"]["POSTGRES_PASSWORD"]]
    given += [compose()["services"][each]["environment"]["PGPASSWORD"] for each in ("worker", "app")]
    assert set(given) == {"${POSTGRES_PASSWORD:?say it in .env}"}
    for _, container in CONTAINERS:
        (url,) = [each for each in container["env"] if each["name"] == "OUTRIDER_DB"]
        assert url == {"name": "OUTRIDER_DB", "valueFrom": {"secretKeyRef": {"name": "outrider", "key": "url"}}}


# --- the container -----------------------------------------------------------------------------------


def test_the_image_runs_a_worker_as_nobody_in_particular_and_hears_sigterm():
    last = dict(instructions())  # of each instruction the last
    assert last["ENTRYPOINT"] == '["tini", "--", "outrider", "worker"]'
    assert last["STOPSIGNAL"] == "SIGTERM"
    user, _, group = last["USER"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    for name, pod in PODS.items():
        security = pod["spec"]["securityContext"]
        assert (security["runAsUser"], security["runAsGroup"], name) == (int(user), int(group), name)


def test_the_image_is_made_in_stages_of_one_base_that_is_named_shortly():
    stages = [rest.split() for name, rest in instructions() if name == "FROM"]
    names = {stage[2] for stage in stages if len(stage) == 3 and stage[1] == "AS"}
    assert {stage[0] for stage in stages} == {"python:3.13-slim"}
    copied_from = {match[1] for _, rest in instructions() if (match := re.search(r"--from=(\S+)", rest))}
    assert copied_from == names != set()
    classifiers = (ROOT / "pyproject.toml").read_text()
    assert "Python :: 3.13" in classifiers, "a version that the project knows"


def copied() -> list[str]:
    """What the build takes from the checkout."""
    return [
        source
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]


def test_what_the_image_copies_is_there_and_gets_past_the_ignore_file():
    lines = CONTAINERFILE.with_suffix(".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    assert set(copied()) == let_in
    assert [path for path in copied() if not (ROOT / path).exists()] == []


@pytest.mark.slow
def test_what_the_image_copies_is_enough_to_build_the_project(tmp_path: Path):
    for source in copied():
        target = tmp_path / "src" / source
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, target)
    wheel = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*wheel, "--no-index", "--wheel-dir", str(tmp_path), str(tmp_path / "src")],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("outrider-*.whl"))) == 1


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+(?:\[\w+\])?)==(\S+)", path.read_text(), re.MULTILINE))


def test_the_image_has_the_releases_that_the_tests_run_with_and_the_driver_of_postgresql():
    worker, tested = pins(ROOT / "requirements" / "worker.txt"), pins(ROOT / "requirements" / "dev.txt")
    assert {name: tested.get(name) for name in worker} == worker
    assert {"psycopg", "psycopg-binary", "pydantic-ai-slim", "orjson"} <= worker.keys()
    assert "pytest" not in worker


# --- compose -----------------------------------------------------------------------------------------


def test_the_services_of_the_compose_file_find_each_other():
    found = compose()
    services = found["services"]
    assert services["worker"]["deploy"]["replicas"] == 2
    for name, service in services.items():
        assert {"image", "restart"} <= service.keys(), name
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "test" in services[other]["healthcheck"]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in found["volumes"] or (COMPOSE.parent / source).is_dir()
    build = services["worker"]["build"]
    assert (COMPOSE.parent / build["context"] / build["dockerfile"]).resolve() == CONTAINERFILE
    given = services["postgres"]["environment"]
    who = f"{given['POSTGRES_USER']}@postgres/{given['POSTGRES_DB']}"
    assert services["worker"]["environment"]["OUTRIDER_DB"] == f"postgresql://{who}"


# --- Kubernetes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", OBJECTS)
def test_an_object_has_what_its_kind_requires(document: dict[str, Any]):
    version, paths = REQUIRED[document["kind"]]
    assert document["apiVersion"] == version
    assert [path for path in ["metadata.name", *paths] if at(document, path) is None] == []
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"])


def test_selectors_find_the_workers_and_nothing_else():
    labels = PODS["worker"]["metadata"]["labels"]
    selectors = [
        at(manifest("Deployment"), "spec.selector.matchLabels"),
        at(manifest("PodDisruptionBudget"), "spec.selector.matchLabels"),
        at(manifest("Deployment"), "spec.template.spec.topologySpreadConstraints.0.labelSelector.matchLabels"),
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not selector.items() <= PODS["doctor"]["metadata"]["labels"].items()


@pytest.mark.parametrize(("name", "container"), CONTAINERS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_container_mounts_volumes_that_are_there_and_may_do_nothing_else(name: str, container: dict[str, Any]):
    pod = PODS[name]["spec"]
    mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
    assert mounted == {volume["name"] for volume in pod.get("volumes", [])}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_a_worker_can_write_where_it_keeps_its_locks():
    (state,) = re.findall(r"XDG_STATE_HOME=(\S+)", dict(instructions())["ENV"])
    (container,) = PODS["worker"]["spec"]["containers"]
    assert state in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_what_is_probed_is_the_same_everywhere():
    (container,) = PODS["worker"]["spec"]["containers"]
    shell, option, script = container["startupProbe"]["exec"]["command"]
    assert (shell, option) == ("sh", "-c")
    assert compose()["services"]["worker"]["healthcheck"]["test"] == ["CMD-SHELL", script.replace("$", "$$")]
    assert "livenessProbe" not in container, "it would end the whole fleet when the database is away"


@pytest.mark.parametrize("kind", ["ScaledObject", "HorizontalPodAutoscaler"])
def test_an_autoscaler_scales_the_workers_and_never_to_none(kind: str):
    spec = manifest(kind)["spec"]
    assert spec["scaleTargetRef"]["name"] == manifest("Deployment")["metadata"]["name"]
    assert spec.get("minReplicas", spec.get("minReplicaCount")) >= 1


def test_a_worker_has_room_for_more_tasks_than_the_autoscalers_aim_at():
    aims = [int(at(manifest("ScaledObject"), "spec.triggers.0.metadata.targetQueryValue"))]
    metrics = at(manifest("HorizontalPodAutoscaler"), "spec.metrics")
    aims += [int(metric["external"]["target"]["averageValue"]) for metric in metrics]
    assert max(aims) < WorkerSettings().concurrency


def test_the_trigger_is_let_in_by_the_secret_that_is_named():
    (trigger,) = manifest("ScaledObject")["spec"]["triggers"]
    authentication = manifest("TriggerAuthentication")
    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    assert authentication["spec"]["secretTargetRef"][0]["parameter"] == "connection"
    assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes texts alone"


def test_the_metric_of_the_autoscaler_is_one_that_workers_export():
    page = (ROOT / "docs" / "telemetry.md").read_text()
    told = {
        name: re.findall(r"`([\w.]+)`", attributes)
        for name, attributes in re.findall(r"^\| `(outrider\.[\w.]+)` \| gauge \| ([^|]*)\|", page, re.MULTILINE)
    }
    exported = {
        name.replace(".", "_"): [each.replace(".", "_") for each in attributes] for name, attributes in told.items()
    }
    for metric in at(manifest("HorizontalPodAutoscaler"), "spec.metrics"):
        named = metric["external"]["metric"]
        assert set(named["selector"]["matchLabels"]) <= set(exported[named["name"]])


def test_the_kustomization_names_files_that_are_there_and_no_autoscaler():
    (found,) = documents(KUBERNETES / "kustomization.yaml")
    there = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(found["resources"]) == {name for name in there if not name.startswith("autoscale-")}


# --- systemd -----------------------------------------------------------------------------------------


def test_commands_outlive_the_service_and_are_known_again_by_the_next():
    service = unit()["Service"]
    assert service["KillMode"] == ["process"]
    assert service["KillSignal"] == ["SIGTERM"]
    assert service["Restart"] == ["on-failure"]
    assert service["OOMPolicy"] == ["continue"]
    breaking = {"PrivateTmp", "RuntimeDirectory", "DynamicUser", "PrivateUsers", "ProcSubset", "ProtectProc"}
    assert breaking & service.keys() == set()
    assert service["Environment"] == ["XDG_STATE_HOME=%S"]
    assert service["StateDirectory"] == ["outrider"], "that is where a worker keeps locks and commands below it"


def test_the_environment_file_of_the_service_is_the_one_that_comes_along():
    given = variables()
    assert unit()["Service"]["EnvironmentFile"] == ["/etc/outrider/worker.env"]
    assert {"OUTRIDER_DB", "OUTRIDER_APP", "PGPASSFILE"} <= given.keys()


# --- the programs of others, where they are at hand --------------------------------------------------


def answer(*command: str, of: str = "") -> subprocess.CompletedProcess[str]:
    if shutil.which(command[0]) is None:
        # The tests above hold the files to what matters without these programs.
        pytest.skip(f"{command[0]} is not installed: {of or 'it would have been asked as well'}")
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_systemd_finds_no_fault_with_the_unit(tmp_path: Path):
    service = tmp_path / UNIT.name
    program = Path(sys.executable).with_name("outrider")  # systemd asks whether it is there
    service.write_text(UNIT.read_text().replace("/opt/outrider/bin/outrider", str(program)))
    done = answer("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(service))
    assert (done.returncode, [line for line in done.stderr.splitlines() if UNIT.stem in line]) == (0, [])


def test_kustomize_puts_the_manifests_together():
    done = answer("kubectl", "kustomize", str(KUBERNETES))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nkind: ") == 3


def test_hadolint_finds_no_fault_with_the_image():
    # DL3008: which tini is a matter of the distribution that the base image is of.
    done = answer("hadolint", "--ignore", "DL3008", str(CONTAINERFILE))
    assert done.returncode == 0, done.stdout


def test_compose_finds_no_fault_with_its_file(tmp_path: Path):
    if answer("docker", "compose", "version").returncode != 0:
        # The file is parsed and held to the program by the tests above.
        pytest.skip("docker is here without its plugin compose: it would have been asked as well")
    secret = tmp_path / ".env"
    secret.write_text("POSTGRES_PASSWORD=secret\n")
    done = answer("docker", "compose", "--env-file", str(secret), "--file", str(COMPOSE), "config", "--quiet")
    assert done.returncode == 0, done.stderr
