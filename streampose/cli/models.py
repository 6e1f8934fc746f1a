"""`models`: the models that ship with streampose, and other bundles."""

from __future__ import annotations

from typing import Annotated

import typer

from streampose.cli.program import JsonFlag, app, write

models = typer.Typer(rich_markup_mode=None, help="The models that ship with streampose, and other bundles.")
app.add_typer(models, name="models")


@models.command("list")
def list_models(json: JsonFlag = False) -> None:
    """The bundled models."""
    from streampose.console import manifest_line, to_json
    from streampose.engines.manifest import bundled_names, locate_bundle, read_manifest

    manifests = [read_manifest(locate_bundle(name)) for name in bundled_names()]
    if json:
        write(to_json(manifests))
        return
    for manifest in manifests:
        typer.echo(manifest_line(manifest))


@models.command("show")
def show_model(
    model: Annotated[str, typer.Argument(metavar="NAME|BUNDLE", help="A bundled model, or a bundle's folder.")],
    json: JsonFlag = False,
) -> None:
    """What a bundle's manifest says, and its card."""
    from streampose.console import bundle_text, to_json
    from streampose.engines.manifest import locate_bundle, read_manifest

    folder = locate_bundle(model)
    manifest = read_manifest(folder)
    if json:
        write(to_json(manifest))
        return
    typer.echo(bundle_text(folder, manifest))


@models.command("verify")
def verify_models(
    model: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|BUNDLE]...", help="By default all bundled.")
    ] = None,
    cuda: Annotated[bool, typer.Option("--cuda", help="Run bundles for onnxruntime by its CUDA provider.")] = False,
) -> None:
    """Compare what each computes with torch's results, which bundles hold; ends with 4 at the first that differs."""
    from streampose.engines.manifest import bundled_names, locate_bundle, read_manifest
    from streampose.engines.store import verify

    for name in model or bundled_names():
        folder = locate_bundle(name)
        typer.echo(f"{name}: {verify(folder, read_manifest(folder), cuda)}")
