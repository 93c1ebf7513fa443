"""Aliases as the command line shows them."""

from services.contracts.aliases import ModelAlias


def shown_alias(alias: ModelAlias) -> str:
    """The alias and all that it refers to, e.g. `production → v1 0.9, v2 0.1`."""
    text = f"{alias.alias} → v{alias.version}"
    if alias.split is not None:
        text += f" {1 - alias.split.weight:.4g}, v{alias.split.version} {alias.split.weight:.4g}"
    if alias.shadow is not None:
        text += f", shadow v{alias.shadow.version}"
    return text


def shown_role(alias: ModelAlias, version: int) -> str:
    """The alias as a version has it, e.g. `production (0.1)`; empty where it does not refer to the version."""
    split, shadow = alias.split, alias.shadow
    if split is not None and version in (alias.version, split.version):
        share = split.weight if version == split.version else 1 - split.weight
        return f"{alias.alias} ({share:.4g})"
    if shadow is not None and version == shadow.version:
        return f"{alias.alias} (shadow)"
    return alias.alias if version == alias.version else ""
