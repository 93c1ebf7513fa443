"""`rekindle models …`."""

from typing import Annotated

import typer

from services.cli.aliases import shown_alias, shown_role
from services.cli.session import AsJson, client_of, print_json, print_table, shown_share, stdout
from services.cli.summary import print_version
from services.contracts.aliases import AliasShadow, AliasSplit

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Look at models and their versions.")
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL")]


@app.command("list")
def list_models(context: typer.Context, as_json: AsJson = False) -> None:
    """Models, newest first."""
    models = list(client_of(context).models.list())
    if as_json:
        print_json(models)
        return
    rows = (
        (
            model.name,
            str(model.latest_version),
            str(len(model.labels)),
            shown_share(model.accuracy),
            ", ".join(shown_alias(alias) for alias in model.aliases),
        )
        for model in models
    )
    print_table(
        ("Model", "Latest", "Classes", "Accuracy", "Aliases"),
        rows,
        empty="no models yet: train one with `rekindle train`",
    )


@app.command()
def show(
    context: typer.Context,
    model: ModelArgument,
    version: Annotated[int | None, typer.Option(min=1, help="(default: the newest)")] = None,
    as_json: AsJson = False,
) -> None:
    """A version's quality by class, and which versions there are."""
    client = client_of(context)
    found = client.models.get(model)
    shown = client.models.version(model, version or found.latest_version)
    if as_json:
        print_json(shown)
        return
    print_version(stdout(), shown)
    rows = (
        (
            f"v{one.version}",
            f"{one.created_at:%Y-%m-%d %H:%M}",
            shown_share(one.evaluation.accuracy if one.evaluation else None),
            ", ".join(role for alias in found.aliases if (role := shown_role(alias, one.version))),
        )
        for one in client.models.versions(model)
    )
    stdout().print()
    print_table(("Version", "Created", "Accuracy", "Aliases"), rows, empty="no versions")


@app.command()
def alias(
    context: typer.Context,
    model: ModelArgument,
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="For example production.")],
    version: Annotated[int, typer.Argument(min=1)],
    expect: Annotated[
        int | None, typer.Option(min=0, help="Only where the alias points at this version now; 0 where there is none.")
    ] = None,
    split: Annotated[
        int | None, typer.Option(min=1, help="A second version, which answers a share of the requests: --weight.")
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="The second version's share of the requests: more than 0, less than 1.")
    ] = None,
    shadow: Annotated[
        int | None, typer.Option(min=1, help="A challenger, which is scored on the same images and never answers.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Points an alias at a version: promotes it, or rolls back. What stood beside the version before ends."""
    if (split is None) != (weight is None):
        raise typer.BadParameter("give --split and --weight together")
    moved = client_of(context).models.set_alias(
        model,
        name,
        version,
        split=None if split is None or weight is None else AliasSplit(version=split, weight=weight),
        shadow=None if shadow is None else AliasShadow(version=shadow),
        expected_version=expect,
    )
    if as_json:
        print_json(moved)
    else:
        stdout().print(f"{model}: {shown_alias(moved)}", markup=False)
