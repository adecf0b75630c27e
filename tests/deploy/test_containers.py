"""The container files run the daemons that they say, without rights, on files that are there."""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from matl_common.scrapes import HEALTH_PATH
from matl_coordinator import config as coordinator
from matl_coordinator import daemon as coordinator_daemon
from matl_participant import config as participant
from matl_participant import daemon as participant_daemon
from tests.deploy.command_lines import parse

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "container"
USER = "10001:10001"
WRITABLE = {
    "migrate": [],
    "coordinator": ["/var/lib/matl", "/backup"],
    "participant": ["/var/lib/matl"],
}
PROGRAMS = {"matl-coordinator": coordinator_daemon.app, "matl-participant": participant_daemon.app}


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of every stage of the Containerfile, by the stage's name."""
    text = (FOLDER / "Containerfile").read_text("utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[tuple[str, str]]] = {"": []}
    name = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, rest = line.split(None, 1)
        if instruction == "FROM":
            name = rest.split(" AS ")[1]
            found[name] = []
        found[name].append((instruction, rest))
    return found


def of(stage: str, instruction: str) -> list[str]:
    return [rest for name, rest in stages()[stage] if name == instruction]


def loaded(name: str) -> coordinator.Config | participant.Config:
    path = FOLDER / f"{name}.toml"
    if name == "coordinator":
        return coordinator.load_config(path, environment={})
    return participant.load_config(path, environment={})


COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]


@pytest.mark.parametrize("name", ["coordinator", "participant"])
def test_an_image_runs_its_daemon_as_an_account_without_rights(name: str) -> None:
    assert of(name, "FROM") == [f"base AS {name}"]
    assert of("base", "USER") == [USER]
    assert not of(name, "USER")
    entry, rest = (yaml.safe_load(each) for each in (*of(name, "ENTRYPOINT"), *of(name, "CMD")))
    parse(PROGRAMS, [*entry, *rest])
    assert rest[-1] == f"/etc/matl/{name}.toml"


@pytest.mark.parametrize("name", ["coordinator", "participant"])
def test_the_health_check_asks_where_the_daemon_answers(name: str) -> None:
    (check,) = of(name, "HEALTHCHECK")
    config = loaded(name)
    metrics = (
        config.listen.metrics if isinstance(config, coordinator.Config) else config.daemon.metrics
    )
    port = metrics.rpartition(":")[2]
    assert f"http://127.0.0.1:{port}{HEALTH_PATH}" in check
    assert port in of(name, "EXPOSE")[0].split()
    (code,) = re.findall(r'"-c", "(.*)"\]', check)
    compile(code, "HEALTHCHECK", "exec")


def test_every_version_in_the_image_is_a_pinned_one_and_every_source_is_there() -> None:
    installs = [each for each in of("build", "RUN") if "pip install" in each]
    assert installs
    assert all("-c constraints.txt" in each for each in installs)
    for copied in of("build", "COPY"):
        *sources, _ = copied.split()
        assert all((ROOT / each).exists() for each in sources)
    kept = (FOLDER / "Containerfile.dockerignore").read_text("utf-8").splitlines()
    copied_names = {each for line in of("build", "COPY") for each in line.split()[:-1]}
    assert {line.removeprefix("!") for line in kept if line.startswith("!")} == copied_names


def test_a_service_of_ours_may_write_to_its_state_its_backups_and_tmp_alone() -> None:
    # Roles reads the secrets, which are the daemons' account's.
    assert SERVICES["roles"]["user"] == USER
    for name in ("migrate", "coordinator", "participant"):
        service = SERVICES[name]
        assert service["user"] == USER
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        writable = [
            each.split(":")[1] for each in service.get("volumes", ()) if not each.endswith(":ro")
        ]
        assert writable == WRITABLE[name]


def test_what_a_service_builds_starts_uses_and_waits_for_is_there() -> None:
    for name, service in SERVICES.items():
        if "build" in service:
            assert service["build"]["target"] in stages()
            assert (ROOT / service["build"]["dockerfile"]).exists()
            assert (FOLDER / service["build"]["context"]).resolve() == ROOT
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
        assert set(service.get("networks", ())) <= set(COMPOSE["networks"])
        for other in service.get("depends_on", ()):
            assert set(service["profiles"]) <= set(SERVICES[other]["profiles"]), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source.startswith(("./", "../")) or source in COMPOSE["volumes"]
    assert (FOLDER / SERVICES["roles"]["volumes"][0].split(":")[0]).exists()


@pytest.mark.parametrize("name", ["migrate", "coordinator"])
def test_a_service_that_takes_a_password_runs_what_the_program_understands(name: str) -> None:
    (command,) = SERVICES[name]["command"]
    secret = re.findall(r"/run/secrets/(\w+)", command)
    assert secret == SERVICES[name]["secrets"]
    parse(PROGRAMS, shlex.split(re.split(r"\bexec ", command)[1]))


def test_what_is_run_beside_the_coordinator_finds_the_password_in_a_private_file(
    tmp_path: Path,
) -> None:
    service = SERVICES["coordinator"]
    assert service["environment"] == {"PGPASSFILE": "/tmp/pgpass"}
    assert any(each.startswith("/tmp:") for each in service["tmpfs"])
    (tmp_path / "database_writer").write_text("secret\n")
    (command,) = service["command"]
    script = command.replace("$$", "$").replace("/run/secrets", str(tmp_path)).split("exec ")[0]
    file = tmp_path / "pgpass"
    environment = {"PATH": os.defpath, "PGPASSFILE": str(file)}
    subprocess.run([*service["entrypoint"], script], check=True, env=environment, timeout=60)
    assert file.stat().st_mode & 0o777 == 0o600
    config = loaded("coordinator")
    assert isinstance(config, coordinator.Config)
    url = urlsplit(str(config.database))
    assert file.read_text() == f"{url.hostname}:5432:{url.path[1:]}:{url.username}:secret\n"


@pytest.mark.parametrize("name", ["coordinator", "participant"])
def test_the_toml_reads_what_is_mounted_and_keeps_its_state_on_a_volume(name: str) -> None:
    config, mounted = loaded(name), [each.split(":")[1] for each in SERVICES[name]["volumes"]]
    assert config.state_dir.is_relative_to("/var/lib/matl")
    if isinstance(config, coordinator.Config):
        assert config.holdout is not None
        data = [config.study.public_images, config.holdout.images]
    else:
        data = [config.data.images]
    for folder in data:
        assert folder is not None
        assert any(folder.is_relative_to(each) for each in mounted), folder
    outside = {each.split(":")[-2] for each in SERVICES[name]["ports"] if "127.0.0.1" not in each}
    assert outside == ({"8470"} if name == "coordinator" else set())


def test_memory_of_a_container_holds_its_worker_and_the_daemon() -> None:
    ours, theirs = loaded("coordinator"), loaded("participant")
    assert isinstance(ours, coordinator.Config)
    assert isinstance(theirs, participant.Config)
    needed = {"coordinator": ours.worker.memory_bytes, "participant": theirs.training.memory_bytes}
    for name, worker in needed.items():
        assert int(SERVICES[name]["mem_limit"].removesuffix("g")) << 30 >= worker + (1 << 30)
