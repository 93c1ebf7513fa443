"""API keys: who may do what.

A key is `rk_<id>_<secret>`. Of the secret, 256 random bits, only its SHA-256 is stored. A slow password hash would
protect nothing more: there is no dictionary of 256-bit secrets to try, and it would cost every request its time.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache

from fastapi import Request
from sqlalchemy import func, select, update

from services.contracts.base import Contract, utc_now
from services.contracts.errors import CallerError, NotFound, PermissionDenied, Unauthenticated
from services.runtime.database import Database
from services.runtime.database.tables import ApiKeyRow

CACHE_S = 5.0
"""How long a key that was found valid is not looked up again; so long a revoked key may still be let in."""
_CACHE_SIZE = 1024
_KEY = re.compile(r"rk_([0-9a-f]{16})_([0-9a-f]{64})")
_UNKNOWN_SHA256 = "0" * 64


class Scope(StrEnum):
    """What a key permits. `admin` includes the others."""

    READ = "read"
    TRAIN = "train"
    PREDICT = "predict"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request."""

    id: str
    """The key's id, or `local` where no keys are needed."""
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether the principal has the scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


LOCAL = Principal("local", frozenset({Scope.ADMIN}))


class ApiKey(Contract):
    """A key, without its secret."""

    id: str
    name: str
    scopes: list[Scope]
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A new key and, this once, the text that opens doors."""

    key: ApiKey
    plaintext: str

    def __repr__(self) -> str:
        return f"CreatedKey(key={self.key!r})"


# --- operations -----------------------------------------------------------------------------------------------------


async def create_key(database: Database, name: str, scopes: Iterable[Scope]) -> CreatedKey:
    """Stores a new key. Raises `CallerError` without scopes, or for a name that is empty or too long."""
    granted = sorted(set(scopes))
    if not granted:
        raise CallerError(f"a key without scopes permits nothing: give it some of {', '.join(Scope)}")
    if not 1 <= len(name) <= 128:
        raise CallerError(f"the key's name has {len(name)} characters: use 1 to 128")
    secret = secrets.token_hex(32)
    row = ApiKeyRow(
        id=secrets.token_hex(8),
        name=name,
        secret_sha256=_hash(secret),
        scopes=[scope.value for scope in granted],
        created_at=utc_now(),
    )
    async with database.transaction() as session:
        session.add(row)
    return CreatedKey(_shown(row), f"rk_{row.id}_{secret}")


async def revoke_key(database: Database, key_id: str) -> ApiKey:
    """Ends a key; other processes notice within `CACHE_S`. Revoking twice changes nothing. Raises `NotFound`."""
    async with database.transaction() as session:
        await session.execute(
            update(ApiKeyRow).where(ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None)).values(revoked_at=utc_now())
        )
        row = await session.get(ApiKeyRow, key_id)
        if row is None:
            raise NotFound(f"no API key {key_id!r}", {"key_id": key_id})
        return _shown(row)


async def list_keys(database: Database) -> list[ApiKey]:
    """All keys, revoked ones too, oldest first."""
    async with database.session() as session:
        rows = await session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id))
        return [_shown(row) for row in rows]


async def has_keys(database: Database) -> bool:
    """Whether there is a key that is not revoked."""
    async with database.session() as session:
        count = await session.scalar(select(func.count()).select_from(ApiKeyRow).where(ApiKeyRow.revoked_at.is_(None)))
        return bool(count)


def _shown(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        scopes=[Scope(scope) for scope in row.scopes],
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


# --- requests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _CachedKey:
    secret_sha256: str
    principal: Principal
    expires_at: float


class KeyVerifier:
    """Says whose key it is. Remembers valid keys for `cache_s`, and nothing about invalid ones."""

    def __init__(
        self, database: Database, *, cache_s: float = CACHE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._cache_s = cache_s
        self._clock = clock
        self._cache: OrderedDict[str, _CachedKey] = OrderedDict()

    async def verify(self, presented: str) -> Principal:
        """The key's principal.

        Raises:
            Unauthenticated: no such key, a wrong secret or a revoked key; the message doesn't say which.
            DatabaseUnavailable: the key is not in memory and cannot be looked up.
        """
        match = _KEY.fullmatch(presented)
        known = await self._known(match[1]) if match else None
        # Compared also for an unknown id, so that the time it takes tells nobody which ids exist.
        expected = known.secret_sha256 if known else _UNKNOWN_SHA256
        is_right = hmac.compare_digest(_hash(match[2] if match else ""), expected)
        if known is None or not is_right:
            raise Unauthenticated("the API key is not valid: check that it was copied whole, or ask for a new one")
        return known.principal

    async def _known(self, key_id: str) -> _CachedKey | None:
        cached = self._cache.get(key_id)
        if cached is not None and cached.expires_at > self._clock():
            return cached
        self._cache.pop(key_id, None)
        looked_up_at = self._clock()
        async with self._database.session() as session:
            row = await session.get(ApiKeyRow, key_id)
        if row is None or row.revoked_at is not None:
            return None
        principal = Principal(row.id, frozenset(Scope(scope) for scope in row.scopes))
        found = _CachedKey(row.secret_sha256, principal, looked_up_at + self._cache_s)
        self._cache[key_id] = found
        while len(self._cache) > _CACHE_SIZE:
            self._cache.popitem(last=False)
        return found


def presented_key(request: Request) -> str | None:
    """The key in `Authorization: Bearer …` or, without that header, in `X-API-Key`."""
    authorization = request.headers.get("authorization")
    if authorization is None:
        return request.headers.get("x-api-key")
    kind, _, value = authorization.partition(" ")
    return value.strip() if kind.lower() == "bearer" else None


@cache
def require(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency: `principal: Annotated[Principal, Depends(require(Scope.TRAIN))]`.

    Answers 401 without a valid key and 403 for a key without the scope. The principal is also on `request.state`.
    """

    async def principal_with_scope(request: Request) -> Principal:
        verifier: KeyVerifier | None = request.app.state.key_verifier
        principal = LOCAL if verifier is None else await _authenticated(request, verifier)
        if not principal.may(scope):
            raise PermissionDenied(
                f"this needs the scope {scope.value!r}, and the key has {', '.join(sorted(principal.scopes))}",
                {"needed": scope.value},
            )
        request.state.principal = principal
        return principal

    return principal_with_scope


async def _authenticated(request: Request, verifier: KeyVerifier) -> Principal:
    key = presented_key(request)
    if key is None:
        raise Unauthenticated("this server needs an API key: send it as 'Authorization: Bearer rk_…'")
    return await verifier.verify(key)
