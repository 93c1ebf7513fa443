"""What the bucket holds, as the policy wants it. Nothing here writes; what is damaged is noted. All functions block."""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from services.contracts import names
from services.contracts.errors import NotFound
from services.contracts.ids import DatasetId, JobId, TrunkId
from services.runtime.objects import ObjectInfo, ObjectStore
from services.training.garbage import policy
from services.training.garbage.policy import Heap, References, Rules, SeenJob, SeenModel, SeenVersion
from services.training.restore.reading import BucketReader, Unreadable

_OF_ATTEMPT = re.compile(r"\d+/.+")
_HEADER_GUESS_BYTES = 2048
_HEADER_LENGTH_BYTES = 8
_READERS = 8


@dataclass(frozen=True, slots=True)
class Survey:
    """Looks at one bucket. Safe for several threads. Every method raises `ObjectStoreUnavailable`."""

    store: ObjectStore
    problems: list[Unreadable] = field(default_factory=list[Unreadable])

    def job(self, job_id: JobId) -> SeenJob:
        """A job's records."""
        reader = BucketReader(self.store)
        record, outcome = reader.read_record(job_id), reader.read_job_outcome(job_id)
        self.problems.extend(reader.problems)
        return SeenJob(job_id, record, outcome, is_readable=not reader.problems)

    def model(self, name: str) -> SeenModel:
        """A model's records. Versions that were only claimed are among them."""
        reader = BucketReader(self.store)
        found = reader.read_model(name)
        manifests = {version.manifest.version: version for version in found.versions}
        versions: list[SeenVersion] = []
        for number in reader.version_numbers(name):
            claim, standing = reader.read_claim(name, number), manifests.get(number)
            versions.append(
                SeenVersion(
                    model_name=name,
                    number=number,
                    manifest=None if standing is None else standing.manifest,
                    deleted_at=None if standing is None else standing.deleted_at,
                    claimed_by=None if claim is None else claim.job_id,
                )
            )
        self.problems.extend(reader.problems)
        aliased = frozenset(version for alias in found.aliases for version in alias.versions)
        return SeenModel(name, tuple(versions), aliased, is_readable=not reader.problems)

    # --- garbage --------------------------------------------------------------------------------------------------

    def job_garbage(self, job_id: JobId, refs: References, rules: Rules) -> list[Heap]:
        """Of one job that ended."""
        checkpoints = list(self.store.list(names.checkpoints_prefix(job_id)))
        attempts = BucketReader(self.store).attempts(job_id)
        reports = [self.store.head(names.job_report(job_id, attempt)) for attempt in attempts]
        return [
            *policy.in_checkpoints(job_id, checkpoints, refs, rules),
            *policy.in_predictions(job_id, [info for info in reports if info is not None], refs, rules),
            *policy.in_batch_prediction(job_id, self.store.list(names.predictions_prefix(job_id)), refs, rules),
        ]

    def version_garbage(self, model: SeenModel, version: SeenVersion, refs: References, rules: Rules) -> list[Heap]:
        """Of one version."""
        prefix = names.model_attempts(model.name, version.number)
        listed = [info for info in self.store.list(prefix) if _OF_ATTEMPT.fullmatch(info.key.removeprefix(prefix))]
        exports = list(self.store.list(names.model_exports(model.name, version.number)))
        return [
            *policy.in_version(model, version, listed, refs, rules),
            *policy.in_exports(model, version, exports, refs, rules),
        ]

    def feature_garbage(self, trunk_id: TrunkId, refs: References, rules: Rules) -> list[Heap]:
        """Of one trunk's features."""
        if policy.may_be_in_use(BucketReader(self.store).read_trunk(trunk_id), refs):
            return []
        shards = [info for info in self.store.list(names.features_prefix(trunk_id)) if _is_shard(info)]
        return policy.in_features(trunk_id, shards, self._broken(shards, rules), refs, rules)

    def upload_garbage(self, dataset_id: DatasetId, refs: References, rules: Rules) -> list[Heap]:
        """Of one dataset. Where its record is there at all, however damaged, there is none."""
        if self.store.head(names.dataset_record(dataset_id)) is not None:
            return []
        return policy.in_uploads(dataset_id, list(self.store.list(names.dataset_files(dataset_id))), refs, rules)

    def check_garbage(self, rules: Rules) -> list[Heap]:
        """Of self-tests."""
        return policy.in_checks(self.store.list(names.store_checks()), rules)

    def _broken(self, shards: Sequence[ObjectInfo], rules: Rules) -> frozenset[str]:
        old = [info for info in shards if rules.is_past(info.modified_at)]
        with ThreadPoolExecutor(_READERS) as readers:
            whole = readers.map(self._is_whole, old)
            return frozenset(info.key for info, is_whole in zip(old, whole, strict=True) if not is_whole)

    def _is_whole(self, info: ObjectInfo) -> bool:
        try:
            head = self.store.get_range(info.key, 0, _HEADER_GUESS_BYTES)
            header_bytes = int.from_bytes(head[:_HEADER_LENGTH_BYTES], "little")
            data_start = _HEADER_LENGTH_BYTES + header_bytes
            if len(head) < data_start <= info.size_bytes:
                head = self.store.get_range(info.key, 0, data_start)
        except NotFound:
            return True
        return shard_size_bytes(head) == info.size_bytes


def _is_shard(info: ObjectInfo) -> bool:
    return info.key.endswith(".safetensors")


def shard_size_bytes(head: bytes) -> int | None:
    """How long a safetensors object must be by its header, with which `head` begins; None where that is broken."""
    data_start = _HEADER_LENGTH_BYTES + int.from_bytes(head[:_HEADER_LENGTH_BYTES], "little")
    if len(head) < data_start:
        return None
    try:
        header = json.loads(head[_HEADER_LENGTH_BYTES:data_start])
        ends = [int(header[name]["data_offsets"][1]) for name in ("features", "sha256", "view")]
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return data_start + max(ends)
