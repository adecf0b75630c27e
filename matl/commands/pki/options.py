"""The options that several of these commands take."""

from pathlib import Path
from typing import Annotated

import typer

Yes = Annotated[
    bool,
    typer.Option("--yes", help="The fingerprint was compared already; do not ask. For scripts."),
]
Federation = Annotated[
    Path,
    typer.Option("--folder", "-f", help="The federation's folder, which `matl pki init` made."),
]
NodeFolderOption = Annotated[
    Path, typer.Option("--folder", "-f", help="The node's own folder, with its keys.")
]
Days = Annotated[int, typer.Option(min=1, max=3660, help="How long the certificate is valid.")]
CoordinatorDays = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=3660,
        help="How long the coordinator's certificate is valid. Default: 365; five years for a TLS "
        "key in a token, whose certificate is an authority's.",
    ),
]
ServerName = Annotated[
    list[str] | None,
    typer.Option("--server-name", help="A further DNS name or IP address of the coordinator."),
]
TokenKey = Annotated[
    str | None, typer.Option(help="The `pkcs11:` URI of a key in a token, not one in the folder.")
]
