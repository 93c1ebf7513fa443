"""Which of an alias's versions answers a request. Pure."""

import hashlib
from dataclasses import dataclass

from services.inference.predict.queries import ServedVersion, Target, VersionChoice

_DRAW_BYTES = 8


@dataclass(frozen=True, slots=True)
class Chosen:
    """What one request gets."""

    served: ServedVersion
    """Answers all of its images."""
    shadow: ServedVersion | None = None
    """Is scored on them as well."""
    alias: str | None = None
    """The alias that has a second version, whose answers are therefore measured; None for any other request."""
    role: str = "main"
    """`main` or `split`."""


def choose(target: Target, choice: VersionChoice, request_id: str) -> Chosen:
    """The same request id always gets the same version of a split, as long as the split stays as it is.

    A split whose weight grows takes requests over and gives none back.
    """
    if target.split is not None:
        in_split = draw(choice, request_id) < target.split_weight
        served, role = (target.split, "split") if in_split else (target.main, "main")
        return Chosen(served, alias=choice.alias, role=role)
    if target.shadow is not None:
        return Chosen(target.main, target.shadow, choice.alias)
    return Chosen(target.main)


def draw(choice: VersionChoice, request_id: str) -> float:
    """A number from 0 up to but not 1 that looks random: of SHA-256 over model, alias and request id."""
    text = f"{choice.model_name}/{choice.alias}/{request_id}"
    digest = hashlib.sha256(text.encode()).digest()[:_DRAW_BYTES]
    # 53 bits, which a float holds exactly: rounding up to 1 would be outside of every split.
    return (int.from_bytes(digest) >> 11) / 2**53
