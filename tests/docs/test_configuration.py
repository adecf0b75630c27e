"""The configuration files in the documentation are configurations."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

from cryptography.hazmat.primitives.asymmetric import ec

from matl.cli import common
from matl.connection import Flags, OperatorFile, read_connection
from matl_common.identity.allowlist import parse_allowlist
from matl_common.identity.keys import public_key_pem
from matl_common.identity.node_folder import NodeFolder
from matl_coordinator import config as coordinator
from matl_participant import config as participant

ROOT = Path(__file__).parents[2]
COORDINATOR, ALLOWLIST, PARTICIPANT, OPERATOR = re.findall(
    r"```toml\n(.*?)```", (ROOT / "docs" / "configuration.md").read_text("utf-8"), re.DOTALL
)


def keys_of(model: Any) -> set[str]:
    """Every key of a configuration, with its section."""
    keys = set()
    for name, field in model.model_fields.items():
        # An optional section is its own first alternative.
        section = next(iter(get_args(field.annotation)), field.annotation)
        if hasattr(section, "model_fields"):
            keys |= {f"{name}.{key}" for key in section.model_fields}
        else:
            keys.add(name)
    return keys


def keys_shown(text: str) -> set[str]:
    """Every key in a TOML example, those that are commented out included."""
    keys, section = set(), ""
    for line in text.splitlines():
        if re.match(r"# \[\[", line):
            section = "rounds.pre_aggregation."
            keys.add("rounds.pre_aggregation")
        elif heading := re.match(r"\[(\w+)\]", line):
            section = f"{heading[1]}."
        elif key := re.match(r"(?:# )?(\w+) =", line):
            keys.add(section + key[1])
    return keys


def test_the_coordinators_example_is_valid_and_leaves_no_key_out(tmp_path: Path) -> None:
    (tmp_path / "coordinator.toml").write_text(COORDINATOR, "utf-8")
    loaded = coordinator.load_config(tmp_path / "coordinator.toml", environment={})
    assert loaded.federation.allowlist == tmp_path / "allowlist.toml"
    undocumented = keys_of(coordinator.Config) - keys_shown(COORDINATOR)
    assert undocumented <= {"study.public_labels"}


def test_the_operators_example_is_valid_whole_and_the_one_that_the_help_shows(
    tmp_path: Path,
) -> None:
    path = tmp_path / "operator.toml"
    path.write_text(OPERATOR, "utf-8")
    loaded = read_connection(path, Flags(*[None] * 5))
    mine = NodeFolder(tmp_path).tls
    assert (loaded.key, loaded.certificate) == (mine.private_key, mine.certificate_chain)
    assert loaded.authority == mine.trusted_authority
    assert keys_of(OperatorFile) == keys_shown(OPERATOR)
    shown = (common.__doc__ or "").split("```")[1]
    assert tomllib.loads(shown) == tomllib.loads(OPERATOR)


def test_the_participants_example_is_valid_and_leaves_no_key_out(tmp_path: Path) -> None:
    (tmp_path / "participant.toml").write_text(PARTICIPANT, "utf-8")
    loaded = participant.load_config(tmp_path / "participant.toml", environment={})
    assert loaded.data.declared_patients == 5000
    undocumented = keys_of(participant.Config) - keys_shown(PARTICIPANT)
    assert undocumented <= {"training.device_memory_bytes"}


def test_the_allow_list_example_is_valid_once_its_key_and_pin_are_filled_in() -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = public_key_pem(key).decode()
    filled = re.sub(
        r"-----BEGIN.*?END PUBLIC KEY-----\n", lambda _: pem, ALLOWLIST, flags=re.DOTALL
    )
    filled = re.sub(r"<SHA-256.*?>", "ab" * 32, filled)
    (node,) = parse_allowlist(filled.encode()).nodes.values()
    assert node.enrolled_patients == 5000


def test_the_coordinators_unit_dies_and_comes_back_before_the_machine_has_no_memory_left() -> None:
    unit = (ROOT / "deploy" / "systemd" / "matl-coordinator.service").read_text()
    assert {"MemoryMax=75%", "OOMPolicy=kill", "Restart=always"} <= set(unit.splitlines())


def test_the_systemd_units_do_not_restart_what_would_only_fail_again() -> None:
    units = ROOT / "deploy" / "systemd"
    for name, statuses in (("coordinator", "2 4"), ("participant", "2 3")):
        unit = (units / f"matl-{name}.service").read_text("utf-8")
        assert f"RestartPreventExitStatus={statuses}\n" in unit
        assert f"/matl-{name} --config" in unit
