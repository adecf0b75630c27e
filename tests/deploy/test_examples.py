"""The files in deploy/examples are configurations, and complete ones."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from matl.connection import Flags, OperatorFile, read_connection
from matl_coordinator import config as coordinator
from matl_coordinator.ingest.config import FrontEndConfig, load_front_end_config
from matl_participant import config as participant
from matl_participant.node_config import NodeConfig, load_node_config
from tests.docs.test_configuration import keys_of

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
LOADERS: dict[str, Any] = {
    "coordinator": coordinator.load_config,
    "participant": participant.load_config,
    "training-node": lambda path, environment: load_node_config(path),
    "front-end": lambda path, environment: load_front_end_config(path),
}
MODELS: dict[str, Any] = {
    "coordinator": coordinator.Config,
    "participant": participant.Config,
    "operator": OperatorFile,
    "training-node": NodeConfig,
    "front-end": FrontEndConfig,
}


def example(name: str) -> str:
    return (EXAMPLES / f"{name}.toml").read_text("utf-8")


def uncommented(text: str) -> str:
    """The example with every key and section that it comments out."""
    return re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE)


def keys_in(text: str) -> set[str]:
    keys = set()
    for name, value in tomllib.loads(text).items():
        keys |= {f"{name}.{key}" for key in value} if isinstance(value, dict) else {name}
    return keys


@pytest.mark.parametrize("name", MODELS)
def test_an_example_names_every_key_that_exists_and_no_other(name: str) -> None:
    assert keys_in(uncommented(example(name))) == keys_of(MODELS[name])


@pytest.mark.parametrize("name", LOADERS)
def test_an_example_loads_as_it_is_and_with_all_that_it_comments_out(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}.toml"
    for text in (example(name), uncommented(example(name))):
        path.write_text(text, "utf-8")
        LOADERS[name](path, environment={})


@pytest.mark.parametrize("name", LOADERS)
def test_what_an_example_sets_beyond_names_and_places_are_the_defaults(
    name: str, tmp_path: Path
) -> None:
    """So that a line deleted from it changes nothing."""
    path = tmp_path / f"{name}.toml"
    path.write_text(example(name), "utf-8")
    model: Any = LOADERS[name](path, environment={})
    changed = {
        f"{section}.{key}"
        for section, field in type(model).model_fields.items()
        if hasattr(part := getattr(model, section), "model_fields_set")
        for key in part.model_fields_set
        if not type(part).model_fields[key].is_required()
        and getattr(part, key) != type(part).model_fields[key].get_default()
    }
    assert changed <= {
        *("listen.logs", "daemon.logs", "daemon.metrics", "identity.witness_key"),
        *("coordinator.log_key", "study.weights_file", "study.public_images"),
        *("training.weights_file", "rounds.rule_parameters"),
    }


def test_the_operators_example_is_what_matl_reads(tmp_path: Path) -> None:
    path = tmp_path / "operator.toml"
    path.write_text(example("operator"), "utf-8")
    assert read_connection(path, Flags(*[None] * 5)).authority == tmp_path / "trusted-ca.crt"
