"""The manifests fit one another, the images, and what the daemons read."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from matl import cli
from matl_common.scrapes import HEALTH_PATH
from matl_coordinator import config as coordinator
from matl_participant import config as participant
from tests.deploy.command_lines import parse
from tests.deploy.test_containers import PROGRAMS, USER

ROOT = Path(__file__).parents[2]
FOLDERS = {name: ROOT / "deploy" / "kubernetes" / name for name in ("coordinator", "participant")}
PAGE = (ROOT / "docs" / "deploy.md").read_text("utf-8")
VERSION = re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
Config = coordinator.Config | participant.Config


def kustomization(name: str) -> dict[str, Any]:
    text = (FOLDERS[name] / "kustomization.yaml").read_text("utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def objects(name: str) -> list[dict[str, Any]]:
    """Everything that ``kubectl apply -k`` makes of a folder, but for the generated ConfigMaps."""
    return [
        each
        for file in kustomization(name)["resources"]
        for each in yaml.safe_load_all((FOLDERS[name] / file).read_text("utf-8"))
    ]


def of_kind(name: str, kind: str) -> list[dict[str, Any]]:
    return [each for each in objects(name) if each["kind"] == kind]


def pod(name: str) -> dict[str, Any]:
    (found,) = of_kind(name, "StatefulSet")
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


def container(name: str) -> dict[str, Any]:
    (found,) = pod(name)["containers"]
    assert isinstance(found, dict)
    return found


def tomls(name: str) -> list[Path]:
    (generated,) = kustomization(name)["configMapGenerator"]
    return [FOLDERS[name] / each for each in generated["files"]]


def load(path: Path) -> Config:
    if path.parent.name == "coordinator":
        return coordinator.load_config(path, environment={})
    return participant.load_config(path, environment={})


def paths_of(config: Config) -> set[Path]:
    """Every path that a configuration names, absolute as they all must be."""
    text = config.model_dump_json()
    return {Path(each) for each in re.findall(r'"(/[^"]+)"', text)}


both = pytest.mark.parametrize("name", FOLDERS)


@both
def test_a_folder_lists_every_file_in_it_once(name: str) -> None:
    there = {path.name for path in FOLDERS[name].iterdir()} - {"kustomization.yaml"}
    listed = [*kustomization(name)["resources"], *(each.name for each in tomls(name))]
    assert sorted(listed) == sorted(there)


@both
def test_every_selector_finds_the_pods_and_every_port_is_one_of_theirs(name: str) -> None:
    (stateful,) = of_kind(name, "StatefulSet")
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    assert stateful["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert stateful["spec"]["serviceName"] in {
        each["metadata"]["name"] for each in of_kind(name, "Service")
    }
    pods = {f"{stateful['metadata']['name']}-{n}" for n in range(stateful["spec"]["replicas"])}
    ports = {each["name"]: each["containerPort"] for each in container(name)["ports"]}
    for service in of_kind(name, "Service"):
        selector = dict(service["spec"]["selector"])
        assert selector.pop("statefulset.kubernetes.io/pod-name", min(pods)) in pods
        assert selector.items() <= labels.items()
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    for kind in ("NetworkPolicy", "PodDisruptionBudget"):
        (found,) = of_kind(name, kind)
        selector = found["spec"].get("podSelector") or found["spec"]["selector"]
        assert selector["matchLabels"].items() <= labels.items()
    (policy,) = of_kind(name, "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    entered = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    assert entered == set(ports.values())


@both
def test_a_pod_meets_the_restricted_standard_that_its_namespace_enforces(name: str) -> None:
    (namespace,) = of_kind(name, "Namespace")
    assert namespace["metadata"]["name"] == kustomization(name)["namespace"]
    enforced = namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert enforced == "restricted"
    whole, mine = pod(name)["securityContext"], container(name)["securityContext"]
    assert whole["runAsNonRoot"] is True
    assert f"{whole['runAsUser']}:{whole['runAsGroup']}" == USER
    assert whole["fsGroup"] == whole["runAsGroup"]
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    assert mine == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(name)["automountServiceAccountToken"] is False
    kinds = {key for each in pod(name)["volumes"] for key in each} - {"name"}
    assert kinds <= {"projected", "configMap", "persistentVolumeClaim", "emptyDir", "secret"}


@both
def test_a_pods_command_line_is_understood_and_names_a_file_that_it_has(name: str) -> None:
    (stateful,) = of_kind(name, "StatefulSet")
    mine = container(name)
    files = {each.name for each in tomls(name)}
    for number in range(stateful["spec"]["replicas"]):
        words = [
            each.replace("$(POD_NAME)", f"{stateful['metadata']['name']}-{number}")
            for each in (*mine["command"], *mine["args"])
        ]
        parse(PROGRAMS, words)
        folder, _, file = words[-1].rpartition("/")
        assert folder in {each["mountPath"] for each in mine["volumeMounts"]}
        files.remove(file)
    assert not files
    assert mine["image"] == f"matl-{name}:{VERSION}"


@both
def test_every_path_in_the_configuration_is_mounted_and_the_state_alone_is_writable(
    name: str,
) -> None:
    mounts = container(name)["volumeMounts"]
    volumes = {each["name"] for each in pod(name)["volumes"]}
    (stateful,) = of_kind(name, "StatefulSet")
    volumes |= {
        each["metadata"]["name"] for each in stateful["spec"].get("volumeClaimTemplates", ())
    }
    assert {each["name"] for each in mounts} == volumes
    writable = [Path(each["mountPath"]) for each in mounts if not each.get("readOnly")]
    for toml in tomls(name):
        # Relative ones would be relative to a folder that Kubernetes replaces.
        assert str(FOLDERS[name]) not in load(toml).model_dump_json()
        config = load(toml)
        assert any(config.state_dir.is_relative_to(each) for each in writable)
        for path in paths_of(config):
            assert any(path.is_relative_to(each["mountPath"]) for each in mounts), path
    assert writable == [Path("/var/lib/matl"), Path("/tmp")]


@both
def test_the_probes_ask_where_the_daemon_answers(name: str) -> None:
    ports = {each["name"]: each["containerPort"] for each in container(name)["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container(name)[probe]["httpGet"]
        assert asked["path"] == HEALTH_PATH
        for toml in tomls(name):
            config = load(toml)
            if isinstance(config, coordinator.Config):
                assert config.listen.address.endswith(f":{ports['grpc']}")
                metrics = config.listen.metrics
            else:
                metrics = config.daemon.metrics
            assert metrics == f"0.0.0.0:{ports[asked['port']]}"


@both
def test_a_pod_is_given_time_and_memory_enough(name: str) -> None:
    limit = int(container(name)["resources"]["limits"]["memory"].removesuffix("Gi")) << 30
    for toml in tomls(name):
        config = load(toml)
        if isinstance(config, coordinator.Config):
            worker, drain = config.worker.memory_bytes, config.limits.drain_seconds
        else:
            worker, drain = config.training.memory_bytes, config.daemon.drain_seconds
        assert limit >= worker + (1 << 30)
        assert pod(name)["terminationGracePeriodSeconds"] > drain


def test_the_two_daemons_of_a_coordinator_differ_in_their_names_alone() -> None:
    one, two = (load(each) for each in tomls("coordinator"))
    assert isinstance(one, coordinator.Config)
    assert isinstance(two, coordinator.Config)
    assert (one.daemon, two.daemon) == ("coordinator-0", "coordinator-1")
    assert one.model_dump(exclude={"standby"}) == two.model_dump(exclude={"standby"})
    (stateful,) = of_kind("coordinator", "StatefulSet")
    (claim,) = of_kind("coordinator", "PersistentVolumeClaim")
    assert stateful["spec"]["replicas"] == 2
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    claimed = [each.get("persistentVolumeClaim", {}) for each in pod("coordinator")["volumes"]]
    assert {"claimName": claim["metadata"]["name"]} in claimed


@both
def test_what_is_secret_is_referred_to_and_the_page_says_how_to_make_it(name: str) -> None:
    assert not of_kind(name, "Secret")
    text = yaml.safe_dump(pod(name))
    made = re.findall(r"create (?:secret generic|configmap) (\S+)", PAGE)
    generated = {each["name"] for each in kustomization(name)["configMapGenerator"]}
    named = {each["name"] for each in container(name).get("env", ()) if "value" in each}
    assert not named, "no value of the environment is in the manifest"
    referred = set(re.findall(r"(?:secretName|name): (matl-\S+)", text)) - generated
    referred -= {container(name)["image"], f"matl-{name}"}
    assert referred <= set(made) | {"matl-public-images", "matl-coordinator-state"}


def test_the_commands_of_the_page_are_understood_and_what_they_install_is_there() -> None:
    programs = {**PROGRAMS, "matl": cli.app}
    commands = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).splitlines()
    parsed = 0
    for line in commands:
        words = shlex.split(line)
        name = Path(words[0]).name
        if name in programs:
            parse(programs, [name, *words[1:]])
            parsed += 1
        for word in words:
            if word.startswith("deploy/"):
                assert (ROOT / word).exists(), word
    assert parsed == 2
    assert {f"deploy/kubernetes/{name}" for name in FOLDERS} <= set(shlex.split(" ".join(commands)))
