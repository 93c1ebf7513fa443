"""What the bucket holds of datasets, jobs and models. Nothing here writes; an object that cannot be read is noted, and
the rest goes on. All functions block."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from pydantic import ValidationError

from services.contracts import names
from services.contracts.aliases import AliasRecord
from services.contracts.datasets import Dataset
from services.contracts.errors import CorruptObject, NotFound, SourceUnreadable
from services.contracts.ids import DatasetId, JobId, TrunkId
from services.contracts.jobs import (
    AttemptOutcome,
    Fence,
    JobCancellation,
    JobOutcome,
    JobRecord,
    ProgressRecord,
)
from services.contracts.models import ModelManifest, TrunkManifest, VersionClaim, VersionDeletion
from services.contracts.spare import AttemptDriver
from services.runtime.objects import ObjectStore

Parsed = TypeVar("Parsed")

_ATTEMPT = re.compile(r"a(\d+)(?:-.*)?")
_VERSION = re.compile(r"v(\d+)")
_SHOWN_REASON_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something that could not be restored, and why."""

    key: str
    """The object's key, or its folder's."""
    reason: str


@dataclass(frozen=True, slots=True)
class FoundAttempt:
    """An attempt's own account."""

    records: tuple[ProgressRecord, ...]
    outcome: AttemptOutcome | None
    driver: AttemptDriver | None = None
    """Null: a Ray job of its own."""


@dataclass(frozen=True, slots=True)
class FoundJob:
    """A job that was accepted."""

    record: JobRecord
    newest_attempt: int
    """The greatest number that left any trace: a fence, a report or a checkpoint; 0 for none."""
    attempts: dict[int, FoundAttempt]
    cancellation: JobCancellation | None
    outcome: JobOutcome | None


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """A version whose manifest is there."""

    manifest: ModelManifest
    deleted_at: datetime | None


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model's versions and aliases."""

    name: str
    versions: tuple[FoundVersion, ...]
    aliases: tuple[AliasRecord, ...]
    """Deleted ones too."""


@dataclass(frozen=True, slots=True)
class BucketReader:
    """Reads one bucket. Safe for several threads.

    Every method raises `ObjectStoreUnavailable`, and those that list `SourceUnreadable`.
    """

    store: ObjectStore
    problems: list[Unreadable] = field(default_factory=list[Unreadable])

    def dataset_ids(self) -> list[DatasetId]:
        """Datasets that left any object."""
        return [DatasetId(name) for name in self.store.list_folder("datasets/").folders]

    def job_ids(self) -> list[JobId]:
        """Jobs that left any object."""
        return [JobId(name) for name in self.store.list_folder("jobs/").folders]

    def trunk_ids(self) -> list[TrunkId]:
        """Trunks that left features."""
        return [TrunkId(name) for name in self.store.list_folder("features/").folders]

    def model_names(self) -> list[str]:
        """Models that left any object."""
        return self.store.list_folder("models/").folders

    def read_dataset(self, dataset_id: DatasetId) -> Dataset | None:
        """The dataset, or None where its record cannot be read."""
        key = names.dataset_record(dataset_id)

        def parse(data: bytes) -> Dataset:
            return Dataset.model_validate_json(data, extra="ignore")

        found = self._required(key, parse)
        return self._named_right(key, found, found is None or found.id == dataset_id)

    def read_job(self, job_id: JobId) -> FoundJob | None:
        """The job, or None where its record cannot be read."""
        record = self.read_record(job_id)
        if record is None:
            return None
        fence = self._optional(names.job_fence(job_id), Fence.model_validate_json)
        outcome = self.read_job_outcome(job_id)
        reported = self.attempts(job_id)
        saved = _numbers(self.store.list_folder(names.checkpoints_prefix(job_id)).folders)
        return FoundJob(
            record=record,
            newest_attempt=max([0 if fence is None else fence.attempt, *reported, *saved]),
            attempts={number: self._read_attempt(job_id, number) for number in reported},
            cancellation=self._optional(names.job_cancellation(job_id), JobCancellation.model_validate_json),
            outcome=outcome,
        )

    def read_record(self, job_id: JobId) -> JobRecord | None:
        """The accepted job, or None where its record cannot be read."""
        key = names.job_spec(job_id)
        record = self._required(key, JobRecord.model_validate_json)
        return self._named_right(key, record, record is None or record.job_id == job_id)

    def read_job_outcome(self, job_id: JobId) -> JobOutcome | None:
        """How the job ended, or None where it has not, or where that cannot be read."""
        return self._optional(names.job_outcome(job_id), JobOutcome.model_validate_json)

    def attempts(self, job_id: JobId) -> list[int]:
        """Numbers of the job's attempts that reported anything."""
        return _numbers(self.store.list_folder(names.attempts_prefix(job_id)).folders)

    def _read_attempt(self, job_id: JobId, number: int) -> FoundAttempt:
        listed = self.store.list(names.attempt_progress_prefix(job_id, number))
        read = [self._optional(info.key, ProgressRecord.model_validate_json) for info in listed]
        return FoundAttempt(
            records=tuple(record for record in read if record is not None),
            outcome=self._optional(names.attempt_outcome(job_id, number), AttemptOutcome.model_validate_json),
            driver=self._optional(names.attempt_driver(job_id, number), AttemptDriver.model_validate_json),
        )

    def version_numbers(self, name: str) -> list[int]:
        """Versions of the model that were claimed or published."""
        return _numbers(self.store.list_folder(names.model_prefix(name)).folders, _VERSION)

    def read_claim(self, name: str, version: int) -> VersionClaim | None:
        """Who may publish the version, or None where nobody claimed it, or where that cannot be read."""
        return self._optional(names.model_claim(name, version), VersionClaim.model_validate_json)

    def read_trunk(self, trunk_id: TrunkId) -> TrunkManifest | None:
        """The trunk, or None where it is not there or cannot be read."""
        return self._optional(names.trunk_manifest(trunk_id), TrunkManifest.model_validate_json)

    def read_model(self, name: str) -> FoundModel:
        """The model as far as it can be read. A version without a manifest was never published."""
        versions: list[FoundVersion] = []
        for number in self.version_numbers(name):
            key = names.model_manifest(name, number)
            manifest = self._optional(key, ModelManifest.model_validate_json)
            same = manifest is None or (manifest.model_name, manifest.version) == (name, number)
            manifest = self._named_right(key, manifest, same)
            deletion = self._optional(names.model_deletion(name, number), VersionDeletion.model_validate_json)
            if manifest is not None:
                versions.append(FoundVersion(manifest, None if deletion is None else deletion.deleted_at))
        aliases: list[AliasRecord] = []
        for info in self.store.list(names.model_aliases(name)):
            alias = self._optional(info.key, AliasRecord.model_validate_json)
            same = alias is None or names.model_alias(name, alias.alias) == info.key
            alias = self._named_right(info.key, alias, same)
            if alias is not None:
                aliases.append(alias)
        return FoundModel(name, tuple(versions), tuple(aliases))

    def _required(self, key: str, parse: Callable[[bytes], Parsed]) -> Parsed | None:
        noted = len(self.problems)
        found = self._optional(key, parse)
        if found is None and len(self.problems) == noted:
            self.problems.append(Unreadable(key, "is not there, though other objects of the same thing are"))
        return found

    def _optional(self, key: str, parse: Callable[[bytes], Parsed]) -> Parsed | None:
        try:
            return parse(self.store.get(key))
        except NotFound:
            return None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            reason = f"does not have the expected form: {f'{where}: ' if where else ''}{first['msg']}"
            self.problems.append(Unreadable(key, reason[:_SHOWN_REASON_CHARACTERS]))
        except (CorruptObject, SourceUnreadable) as error:
            self.problems.append(Unreadable(key, error.message))
        return None

    def _named_right(self, key: str, found: Parsed | None, right: bool) -> Parsed | None:
        if found is None or right:
            return found
        self.problems.append(Unreadable(key, "is about something else than its name says"))
        return None


def _numbers(folders: Iterable[str], pattern: re.Pattern[str] = _ATTEMPT) -> list[int]:
    """The numbers in folders' names, each once, in order."""
    return sorted({int(match[1]) for folder in folders if (match := pattern.fullmatch(folder))})
