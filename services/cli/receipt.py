"""`rekindle receipt JOB_ID`: what a training job has cost."""

from typing import Annotated

import typer

from services.cli.session import AsJson, client_of, make_table, print_json, stdout
from services.contracts.prices import LOCAL
from services.contracts.receipts import MachineCost, Receipt, SavedWork

app = typer.Typer(add_completion=False)


@app.command()
def run(
    context: typer.Context, job_id: Annotated[str, typer.Argument(metavar="JOB_ID")], as_json: AsJson = False
) -> None:
    """Which machines worked for a training job, what that cost, and what was done twice or not at all."""
    receipt = client_of(context).training_jobs.receipt(job_id)
    if as_json:
        print_json(receipt)
        return
    console = stdout()
    if receipt.machines:
        columns = ("Machine", "Market", "Attempt", "From", "Minutes", "Cost", "On demand")
        console.print(make_table(columns, map(_row, receipt.machines)))
        console.print()
    for line in lines(receipt):
        console.print(line, markup=False, soft_wrap=True)


def _row(each: MachineCost) -> tuple[str, ...]:
    return (
        each.machine.instance_type or f"node {each.machine.node_id[:12]}",
        each.machine.market or ("-" if each.machine.instance_type == LOCAL else "?"),
        str(each.attempt),
        f"{each.began_at:%Y-%m-%d %H:%M:%S}",
        f"{each.hours * 60:.1f}",
        _money(each.cost),
        _money(each.on_demand_cost),
    )


def lines(receipt: Receipt) -> list[str]:
    """The rest of it, in sentences."""
    so_far = "" if receipt.final else " so far"
    total = f"Cost{so_far}: {_money(receipt.cost)} {receipt.currency}, on demand {_money(receipt.on_demand_cost)}."
    if receipt.cost is None:
        total += f" Known: {_money(receipt.known_cost)}."
    return [
        total,
        *(f"Not known: {reason}." for reason in receipt.missing),
        f"Attempts: {receipt.attempts}; recoveries: {receipt.recoveries}, epochs done again: {receipt.epochs_redone}.",
        *_saved(receipt.saved),
        f"Prices of {receipt.prices_as_of}. {receipt.prices_source}",
    ]


def _saved(saved: SavedWork) -> list[str]:
    found: list[str] = []
    if saved.files is not None and saved.files_known is not None:
        found.append(f"{saved.files_known} of {saved.files} files were read before")
    if saved.images_cached is not None:
        found.append(f"{saved.images_cached} needed no trunk")
    if saved.core_s_saved:
        found.append(f"that spared about {saved.core_s_saved:.1f} s of a core")
    return [f"{', '.join(found)}."] if found else []


def _money(amount: float | None) -> str:
    return "?" if amount is None else f"{amount:.4f}"
