"""Who is held out for validation: a pure function of the seed and of each image's bytes.

Not of paths, order or count, so adding images to a dataset moves few of the others between the splits.
"""

import hashlib
from collections.abc import Iterable, Mapping

from services.contracts.base import Sha256
from services.contracts.errors import ClassTooSmall


def hold_out(sha256s_by_label: Mapping[str, Iterable[Sha256]], fraction: float, seed: int) -> set[Sha256]:
    """The images to validate on: of each class, `fraction` of its images, at least one, and never all.

    Each class's images (distinct) are put in the order of a hash keyed by the seed, and the first are taken. Raises
    `ClassTooSmall` for a class of fewer than two images.
    """
    held_out: set[Sha256] = set()
    for label, sha256s in sha256s_by_label.items():
        ordered = sorted(sha256s, key=lambda sha256: _rank(sha256, seed))
        if len(ordered) < 2:
            raise ClassTooSmall(
                f"class {label!r} has {len(ordered)} usable image(s): at least 2 are needed, one to train on and one "
                "to validate on. Add images, or give a validation split of your own",
                {"label": label, "usable": len(ordered)},
            )
        count = min(max(1, round(fraction * len(ordered))), len(ordered) - 1)
        held_out.update(ordered[:count])
    return held_out


def _rank(sha256: Sha256, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{sha256}".encode()).digest()
