"""The price list: one that comes with Rekindle, or a file of the operator's own."""

from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from services.contracts.errors import InternalError
from services.contracts.prices import PriceList


def read_prices(path: Path | None = None) -> PriceList:
    """The list in a JSON file (`PriceList`); Rekindle's own without one.

    Raises `InternalError` for a file that cannot be read or is no price list.
    """
    if path is None:
        return PriceList.model_validate_json(resources.files("services.runtime").joinpath("prices.json").read_bytes())
    try:
        return PriceList.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InternalError(f"the price file {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise InternalError(f"the price file {path}: {where}: {first['msg']}") from error
