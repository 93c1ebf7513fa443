"""What IAM policies allow, as far as the cluster's use the language. What it does not know is an error."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Context = Mapping[str, str | Sequence[str]]


def allows(policies: Iterable[Mapping[str, Any]], action: str, resource: str, context: Context | None = None) -> bool:
    """Whether one of the policies' statements allows it; there are no denials in them."""
    statements = [statement for policy in policies for statement in policy["Statement"]]
    assert all(statement["Effect"] == "Allow" for statement in statements)
    return any(
        any(_like(pattern, action) for pattern in _list(statement["Action"]))
        and any(_like(pattern, resource) for pattern in _list(statement["Resource"]))
        and _holds(statement.get("Condition", {}), context or {})
        for statement in statements
    )


def _holds(condition: Mapping[str, Mapping[str, Any]], context: Context) -> bool:
    return all(
        _compare(operator, _list(wanted), context.get(key))
        for operator, keys in condition.items()
        for key, wanted in keys.items()
    )


def _compare(operator: str, wanted: Sequence[str], actual: str | Sequence[str] | None) -> bool:
    if operator.startswith("ForAllValues:"):
        values = [] if actual is None else _list(actual)
        return all(_compare(operator.removeprefix("ForAllValues:"), wanted, value) for value in values)
    if actual is None:
        return operator.endswith("IfExists")
    assert isinstance(actual, str)
    match operator.removesuffix("IfExists"):
        case "StringEquals" | "ArnEquals":
            return actual in wanted
        case "StringLike":
            return any(_like(pattern, actual) for pattern in wanted)
        case _:
            raise NotImplementedError(operator)


def _like(pattern: str, value: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), value) is not None


def _list(value: str | Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value
