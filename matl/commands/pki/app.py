"""``matl pki``, put together."""

import typer

from matl.commands.pki.node import install_command, request
from matl.commands.pki.operator import approve, authority, init, list_command, renew, revoke

pki_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Enrol nodes, renew and revoke their keys. A hospital's private keys never leave its "
    "machine.",
)
pki_app.command()(authority)
pki_app.command()(init)
pki_app.command()(request)
pki_app.command()(approve)
pki_app.command("install")(install_command)
pki_app.command()(renew)
pki_app.command()(revoke)
pki_app.command("list")(list_command)
