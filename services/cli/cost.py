"""`rekindle cost`: what the measured work would cost on machines of each type. Needs no server."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from services.cli.session import AsJson, print_json, print_table
from services.contracts.base import Contract
from services.contracts.prices import InstancePrice
from services.runtime.prices import read_prices

app = typer.Typer(add_completion=False)
SECONDS_PER_HOUR = 3600
THOUSAND, MILLION = 1_000, 1_000_000


@dataclass(frozen=True, slots=True)
class Throughput:
    """Work that was measured on a machine without a GPU."""

    cores: int
    train_images_per_s: float
    """Of a head's job: each image read, checked and run through the trunk once, the fit included, the start of
    processes not."""
    predictions_per_s: float
    """Over HTTP, one image a request, the client on the same cores."""

    def hours(self, images: int, images_per_s: float, vcpus: int) -> float:
        """Of a machine with `vcpus`, each of which is taken for a measured core."""
        return images / (images_per_s / self.cores * vcpus) / SECONDS_PER_HOUR


MEASURED = Throughput(cores=2, train_images_per_s=1000 / 3.3, predictions_per_s=338)
"""MobileNetV2 on photographs of 500 x 375 pixels, as the README's section "Measured" has it."""


class InstanceCost(Contract):
    """Money, in the price list's currency; null where the price is not known."""

    price: InstancePrice
    training_on_demand: float
    """For 1,000 images."""
    training_spot: float | None
    predictions_on_demand: float
    """For a million images."""
    predictions_spot: float | None


def cost_of(price: InstancePrice, measured: Throughput = MEASURED) -> InstanceCost:
    """Extrapolated: no machine of the type was measured, and its GPU does not count."""
    training_h = measured.hours(THOUSAND, measured.train_images_per_s, price.vcpus)
    predictions_h = measured.hours(MILLION, measured.predictions_per_s, price.vcpus)
    return InstanceCost(
        price=price,
        training_on_demand=training_h * price.on_demand,
        training_spot=None if price.spot is None else training_h * price.spot,
        predictions_on_demand=predictions_h * price.on_demand,
        predictions_spot=None if price.spot is None else predictions_h * price.spot,
    )


@app.command()
def run(
    prices: Annotated[
        Path | None, typer.Option(help="A price file of your own (JSON), instead of Rekindle's.", metavar="FILE")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/operations.md.")] = False,
    as_json: AsJson = False,
) -> None:
    """What 1,000 training images and a million predictions cost by type of machine, extrapolated from two cores."""
    listed = read_prices(prices)
    costs = [cost_of(each) for each in listed.instances]
    if as_json:
        print_json(costs)
    elif markdown:
        typer.echo(markdown_table(costs))
    else:
        print_table(_COLUMNS, map(_row, costs), empty="no prices")
        typer.echo(f"{listed.currency}, prices of {listed.as_of}: on demand / spot. {listed.source}")


def markdown_table(costs: list[InstanceCost]) -> str:
    """The table as the runbook has it."""
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *map(_row, costs)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_COLUMNS = ("Machine", "Region", "vCPUs", "GPU", "An hour", "Training 1,000 images", "A million predictions")


def _row(cost: InstanceCost) -> tuple[str, ...]:
    price = cost.price
    return (
        price.instance_type,
        price.region,
        str(price.vcpus),
        price.gpu or "",
        _both(price.on_demand, price.spot, 3),
        _both(cost.training_on_demand, cost.training_spot, 5),
        _both(cost.predictions_on_demand, cost.predictions_spot, 2),
    )


def _both(on_demand: float, spot: float | None, digits: int) -> str:
    return f"{on_demand:.{digits}f} / {'?' if spot is None else f'{spot:.{digits}f}'}"
