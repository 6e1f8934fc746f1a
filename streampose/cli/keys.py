"""`keys`: who may subscribe to a stream that other machines reach."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streampose.cli.program import JsonFlag, app, write

keys = typer.Typer(rich_markup_mode=None, help="Who may subscribe: CURVE keys and the allow list.")
app.add_typer(keys, name="keys")

FolderOption = Annotated[
    Path, typer.Option("--keys", metavar="DIR", help="The publisher's folder of keys, as for run --keys.")
]
DEFAULT_FOLDER = Path(typer.get_app_dir("streampose")) / "keys"
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Of the subscriber.")]


@keys.command("new")
def new_key(
    name: NameArgument,
    folder: FolderOption = DEFAULT_FOLDER,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The key file to write; by default NAME.key in this folder.")
    ] = None,
    public: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Allow this public key, whose secret the subscriber keeps; writes no file."),
    ] = None,
) -> None:
    """Let a subscriber in: make its key file, or allow a key of its own. The first call makes the publisher's keys too.

    A running publisher notices at once.
    """
    from streampose.keys import add_key, allow_public

    if public is not None:
        typer.echo(f"{name} is allowed; the publisher's public key is {allow_public(folder, name, public)}")
        return
    path = out or Path(f"{name}.key")
    add_key(folder, name, path)
    typer.echo(f"{path}: carry it to the subscriber by a safe way, it is secret: streampose listen --key {path.name}")
    typer.echo(f"{folder}: the publisher's side: streampose run --publish tcp://0.0.0.0:5555 --keys {folder}")


@keys.command("list")
def list_keys(folder: FolderOption = DEFAULT_FOLDER, json: JsonFlag = False) -> None:
    """Who is on the allow list."""
    from streampose.console import to_json
    from streampose.keys import list_allowed, read_pair

    publisher = read_pair(folder).public
    entries = list_allowed(folder)
    if json:
        write(to_json({"publisher": publisher, "allowed": entries}))
        return
    typer.echo(f"publisher  {publisher}")
    for entry in entries:
        typer.echo(f"{entry.name:<20} {entry.public}  since {entry.since}")


@keys.command("revoke")
def revoke_key(name: NameArgument, folder: FolderOption = DEFAULT_FOLDER) -> None:
    """Take a subscriber off the allow list; a running publisher ends its connection within a second or two."""
    from streampose.keys import revoke

    revoke(folder, name)
    typer.echo(f"{name} is revoked")
