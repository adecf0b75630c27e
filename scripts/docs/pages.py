"""What is written into the documentation's pages when the site is built.

A page says ``<!-- generated: NAME -->`` where one of ``GENERATED`` belongs. Nothing generated is
kept in the repository, so nothing of it can be out of date.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from scripts.docs.commands import command_reference
from scripts.docs.configuration import configuration_reference
from scripts.docs.wire import wire_reference

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
MARKER: Final = re.compile(r"<!-- generated: ([\w-]+) -->")
PUBLIC_MODULES: Final = (
    *("matl", "matl.privacy", "matl.training", "matl.audit", "matl.operations", "matl.attacks"),
    "matl_common.modes",
)
"""What a researcher or an operator's script may import."""


def _of_coordinator() -> str:
    from matl_coordinator.config import Config

    return configuration_reference(Config, example=_example("coordinator"))


def _of_participant() -> str:
    from matl_participant.config import Config

    return configuration_reference(Config, example=_example("participant"))


def _of_front_end() -> str:
    from matl_coordinator.ingest.config import FrontEndConfig

    return configuration_reference(FrontEndConfig, example=_example("front-end"))


def _of_operator() -> str:
    from matl.connection import OperatorFile

    return configuration_reference(OperatorFile, example=_example("operator"))


def _example(name: str) -> str:
    return (ROOT / "deploy" / "examples" / f"{name}.toml").read_text("utf-8")


def _commands() -> str:
    from matl.cli import app

    return command_reference(app, program="matl")


def _daemons() -> str:
    from matl_coordinator import daemon as coordinator
    from matl_participant import daemon as participant

    return "\n".join(
        (
            command_reference(coordinator.app, program="matl-coordinator"),
            command_reference(participant.app, program="matl-participant"),
        )
    )


def _scripts() -> str:
    from matl.compliance import commands as compliance
    from matl.dashboard import command as dashboard
    from matl.deploy import command as deploy

    return "\n".join(
        (
            command_reference(deploy.app, program="deploy_medical_fl.py"),
            command_reference(compliance.app, program="verify_hipaa.py"),
            command_reference(dashboard.app, program="monitor_fl_node.py"),
        )
    )


def _wire(name: str) -> str:
    return wire_reference((ROOT / "proto" / "matl" / "v1" / f"{name}.proto").read_text("utf-8"))


def _modules() -> str:
    """Directives for autodoc, which knows what a module exports."""
    return "\n".join(
        f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n"
        for name in PUBLIC_MODULES
        if find_spec(name) is not None
    )


def _others() -> str:
    """Pages that ``index.md`` does not name; a new one is found before anybody places it."""
    named = set(re.findall(r"^([\w/-]+)$", (DOCS / "index.md").read_text("utf-8"), re.MULTILINE))
    there = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    return "\n".join(sorted(there - named))


GENERATED: Final[Mapping[str, Callable[[], str]]] = {
    "commands": _commands,
    "daemons": _daemons,
    "scripts": _scripts,
    "configuration-coordinator": _of_coordinator,
    "configuration-participant": _of_participant,
    "configuration-front-end": _of_front_end,
    "configuration-operator": _of_operator,
    "wire-federation": lambda: _wire("federation"),
    "wire-operations": lambda: _wire("operations"),
    "wire-audit": lambda: _wire("audit"),
    "wire-ingest": lambda: _wire("ingest"),
    "modules": _modules,
    "other-pages": _others,
}


def filled(text: str) -> str:
    """A page with everything in it that is generated.

    Raises:
        KeyError: it asks for something that is not there.
    """
    return MARKER.sub(lambda asked: GENERATED[asked[1]](), text)
