"""What is garbage. Pure functions: what the bucket's manifests refer to, then each place's objects one by one.

Every rule rests on facts that never change again: a job that ended does not run again (`outcome.json` is created only
if absent), a deleted version stays deleted, a version's manifest is never replaced, a version's number belongs to the
job that claimed it. So what is garbage once is garbage for ever, and it does not matter how old the decision is when
somebody acts on it. The one exception are features, a cache: removing them in error costs time and loses nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from services.contracts import names
from services.contracts.backbones import BackboneName
from services.contracts.ids import DatasetId, JobId, TrunkId
from services.contracts.jobs import JobOutcome, JobRecord
from services.contracts.models import ModelManifest, TrunkManifest
from services.runtime.objects import ObjectInfo

_MANIFEST = "/manifest.json"

TrunkShape = tuple[BackboneName, int]
"""Backbone and image side in pixels: what a job's spec tells of the trunk that it will use."""


class Kind(StrEnum):
    """Why something is garbage."""

    CHECKPOINTS = "checkpoints"
    """Of a job that ended."""
    PREDICTIONS = "predictions"
    """Per-image predictions of an attempt whose version is not the one published, or was deleted."""
    PREDICTION_PARTS = "prediction_parts"
    """Of a batch prediction that ended: what its results were made from, and results that are not whole."""
    DEAD_ATTEMPTS = "dead_attempts"
    """Objects of a version, written by an attempt that did not publish it."""
    DELETED_VERSIONS = "deleted_versions"
    BROKEN_FEATURES = "broken_features"
    UNUSED_FEATURES = "unused_features"
    ORPHANED_UPLOADS = "orphaned_uploads"
    """Files of a dataset that nothing knows of."""
    CHECKS = "checks"
    """Left by self-tests that were killed."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How long what is kept."""

    now: datetime
    grace: timedelta
    features_kept: timedelta | None
    """Since the newest features of the same trunk; None keeps them for ever."""

    def is_past(self, at: datetime) -> bool:
        """Whether the grace period after `at` is over."""
        return at <= self.now - self.grace


@dataclass(frozen=True, slots=True)
class SeenJob:
    """A job's records in the bucket."""

    job_id: JobId
    record: JobRecord | None
    outcome: JobOutcome | None
    is_readable: bool
    """Nothing that is there is damaged, and the record is there."""


@dataclass(frozen=True, slots=True)
class SeenVersion:
    """A version that was claimed or published."""

    model_name: str
    number: int
    manifest: ModelManifest | None
    deleted_at: datetime | None
    claimed_by: JobId | None


@dataclass(frozen=True, slots=True)
class SeenModel:
    """A model's records in the bucket."""

    name: str
    versions: tuple[SeenVersion, ...]
    aliased: frozenset[int]
    """Versions that aliases refer to, in any role."""
    is_readable: bool


@dataclass(frozen=True, slots=True)
class Known:
    """What the database knows. It may be older than the bucket, and then what it refers to is kept as well."""

    unfinished_jobs: frozenset[JobId] = frozenset()
    datasets: frozenset[DatasetId] = frozenset()


@dataclass(frozen=True, slots=True)
class References:
    """What is referred to."""

    ended: frozenset[JobId]
    """Jobs that ended longer ago than the grace period and of which nothing is in doubt."""
    running_shapes: frozenset[TrunkShape]
    """What the unfinished jobs need."""
    keys: frozenset[str]
    """Objects of versions that were not deleted, or not long ago, or that an unfinished job retrains or labels with;
    results of batch predictions."""
    trunks: frozenset[TrunkId]
    datasets: frozenset[DatasetId]
    doubtful_models: frozenset[str]
    """Something under their name is damaged or missing."""
    is_complete: bool
    """Nothing at all is damaged or missing: what is not in here is referred to by nobody."""
    are_running_jobs_known: bool
    """The record of every unfinished job could be read."""


@dataclass(frozen=True, slots=True)
class Heap:
    """Garbage that goes together. `manifests` go first: what is half removed must not look whole."""

    kind: Kind
    where: str
    manifests: tuple[ObjectInfo, ...]
    objects: tuple[ObjectInfo, ...]

    @property
    def everything(self) -> tuple[ObjectInfo, ...]:
        """In the order of removal."""
        return (*self.manifests, *self.objects)


def refer(jobs: Sequence[SeenJob], models: Sequence[SeenModel], known: Known, rules: Rules) -> References:
    """What the manifests in the bucket refer to, and what of it is in doubt."""
    published = {(version.model_name, version.number) for version in _published(models)}
    doubtful = {model.name for model in models if not model.is_readable} | _lost_models(jobs, published)
    unfinished = [job for job in jobs if job.outcome is None or job.job_id in known.unfinished_jobs]
    in_use = {version for job in unfinished if (version := _version_in_use(job.record)) is not None}
    standing = [
        version.manifest
        for model in models
        for version in model.versions
        if version.manifest is not None
        and ((model.name, version.number) in in_use or not is_deleted(model, version, rules))
    ]
    return References(
        ended=frozenset(job.job_id for job in jobs if _has_ended(job, doubtful, known, rules)),
        running_shapes=frozenset(shape for job in unfinished for shape in _shapes(job.record)),
        keys=frozenset(key for manifest in standing for key in _keys_of(manifest)) | _results(jobs),
        trunks=frozenset(manifest.trunk.trunk_id for manifest in standing),
        datasets=known.datasets | _datasets(jobs, standing),
        doubtful_models=frozenset(doubtful),
        is_complete=not doubtful and all(job.is_readable for job in jobs),
        are_running_jobs_known=all(job.record is not None for job in unfinished),
    )


def is_deleted(model: SeenModel, version: SeenVersion, rules: Rules) -> bool:
    """Whether the version was deleted long enough ago, and no alias in the bucket has been left on it."""
    at = version.deleted_at
    return at is not None and rules.is_past(at) and version.number not in model.aliased


def _published(models: Iterable[SeenModel]) -> list[SeenVersion]:
    return [version for model in models for version in model.versions if version.manifest is not None]


def _lost_models(jobs: Iterable[SeenJob], published: set[tuple[str, int]]) -> set[str]:
    """Models of which a job says that it published a version which has no manifest."""
    said = [job.outcome.published for job in jobs if job.outcome is not None]
    return {one.model_name for one in said if one is not None and (one.model_name, one.version) not in published}


def _has_ended(job: SeenJob, doubtful: set[str], known: Known, rules: Rules) -> bool:
    if job.outcome is None or job.record is None or not job.is_readable or job.job_id in known.unfinished_jobs:
        return False
    concerned = {job.record.model_name}
    if job.outcome.published is not None:
        concerned.add(job.outcome.published.model_name)
    return job.outcome.job_id == job.job_id and rules.is_past(job.outcome.finished_at) and not concerned & doubtful


def _shapes(record: JobRecord | None) -> list[TrunkShape]:
    if record is not None and record.spec is not None:
        return [(each.backbone, each.resolved_image_size()) for each in record.spec.possible_backbones()]
    base = None if record is None else record.base
    return [] if base is None else [(base.backbone, base.image_size)]


def _version_in_use(record: JobRecord | None) -> tuple[str, int] | None:
    """Model and version that the job retrains, or labels with."""
    if record is None:
        return None
    if record.prediction is not None:
        return None if record.model_version is None else (record.model_name, record.model_version)
    parent = None if record.spec is None else record.spec.parent
    if parent is None or parent.version is None:  # an accepted job's names its version
        return None
    return parent.model_name, parent.version


def _results(jobs: Iterable[SeenJob]) -> frozenset[str]:
    """What batch predictions made."""
    keys: set[str] = set()
    for job in jobs:
        made = None if job.outcome is None else job.outcome.predicted
        if made is not None:
            keys |= {names.prediction_result(job.job_id), *(ref.key for ref in made.files)}
    return frozenset(keys)


def _keys_of(manifest: ModelManifest) -> list[str]:
    trunk = manifest.trunk
    refs = [manifest.tail, manifest.tail_weights, manifest.predictions, trunk.top, trunk.upper, trunk.network]
    refs += trunk.artefacts.values()
    return [ref.key for ref in refs if ref is not None]


def _datasets(jobs: Iterable[SeenJob], standing: Iterable[ModelManifest]) -> frozenset[DatasetId]:
    of_jobs = {job.record.dataset_id for job in jobs if job.record is not None}
    of_versions = {manifest.spec.dataset_id for manifest in standing if manifest.spec is not None}
    return frozenset(dataset_id for dataset_id in of_jobs | of_versions if dataset_id is not None)


# --- place by place -------------------------------------------------------------------------------------------------


def in_checkpoints(job_id: JobId, listed: Iterable[ObjectInfo], refs: References, rules: Rules) -> list[Heap]:
    """Of the objects below a job's checkpoints, those of a job that ended. A checkpoint goes whole or not at all."""
    if job_id not in refs.ended:
        return []
    by_folder: dict[str, list[ObjectInfo]] = {}
    for info in listed:
        by_folder.setdefault(info.key.rpartition("/")[0], []).append(info)
    gone = [
        info
        for infos in by_folder.values()
        if all(rules.is_past(info.modified_at) and info.key not in refs.keys for info in infos)
        for info in infos
    ]
    manifests = [info for info in gone if info.key.endswith(_MANIFEST)]
    objects = [info for info in gone if not info.key.endswith(_MANIFEST)]
    return _heap(Kind.CHECKPOINTS, job_id, objects, manifests)


def in_predictions(job_id: JobId, listed: Iterable[ObjectInfo], refs: References, rules: Rules) -> list[Heap]:
    """Of the per-image predictions that a job's attempts wrote, those that no version refers to."""
    if job_id not in refs.ended:
        return []
    return _heap(Kind.PREDICTIONS, job_id, _unreferred(listed, refs, rules))


def in_batch_prediction(job_id: JobId, listed: Iterable[ObjectInfo], refs: References, rules: Rules) -> list[Heap]:
    """Of all that a batch prediction wrote, what is not its result."""
    if job_id not in refs.ended:
        return []
    return _heap(Kind.PREDICTION_PARTS, job_id, _unreferred(listed, refs, rules))


def in_version(
    model: SeenModel, version: SeenVersion, listed: Iterable[ObjectInfo], refs: References, rules: Rules
) -> list[Heap]:
    """Of the objects that attempts wrote for a version. Its claim and its records stay: the number is never free again.

    Nothing goes while a job that may still publish or refer to it is unfinished.
    """
    if not _is_settled(model, version, refs):
        return []
    deleted = is_deleted(model, version, rules)
    if deleted and not refs.is_complete:
        return []
    kind = Kind.DELETED_VERSIONS if deleted else Kind.DEAD_ATTEMPTS
    return _heap(kind, f"{model.name}/v{version.number}", _unreferred(listed, refs, rules))


def in_exports(
    model: SeenModel, version: SeenVersion, listed: Iterable[ObjectInfo], refs: References, rules: Rules
) -> list[Heap]:
    """Of a version's exports: all, once its own objects are garbage because it was deleted."""
    is_standing = version.manifest is None or version.manifest.tail.key in refs.keys
    if is_standing or not refs.is_complete or not _is_settled(model, version, refs):
        return []
    gone = [info for info in listed if rules.is_past(info.modified_at)]
    manifests = [info for info in gone if info.key.endswith(".json")]
    archives = [info for info in gone if not info.key.endswith(".json")]
    return _heap(Kind.DELETED_VERSIONS, f"{model.name}/v{version.number}", archives, manifests)


def _is_settled(model: SeenModel, version: SeenVersion, refs: References) -> bool:
    """Whether no unfinished job may still publish or refer to the version, and nothing of the model is in doubt."""
    owners = {version.claimed_by, None if version.manifest is None else version.manifest.job_id} - {None}
    return model.name not in refs.doubtful_models and bool(owners) and owners <= refs.ended


def may_be_in_use(trunk: TrunkManifest | None, refs: References) -> bool:
    """Whether an unfinished job may be reading or writing the trunk's features."""
    if not refs.running_shapes and refs.are_running_jobs_known:
        return False
    return trunk is None or not refs.are_running_jobs_known or (trunk.backbone, trunk.image_size) in refs.running_shapes


def in_features(
    trunk_id: TrunkId, listed: Sequence[ObjectInfo], broken: frozenset[str], refs: References, rules: Rules
) -> list[Heap]:
    """Of a trunk's features, where `may_be_in_use` has said no: all that are too old and of no use, or those whose
    keys are in `broken`."""
    newest = max((info.modified_at for info in listed), default=None)
    unused = refs.is_complete and trunk_id not in refs.trunks
    if newest is not None and unused and rules.features_kept is not None and newest <= rules.now - rules.features_kept:
        return _heap(Kind.UNUSED_FEATURES, trunk_id, listed)
    gone = [info for info in listed if info.key in broken and rules.is_past(info.modified_at)]
    return _heap(Kind.BROKEN_FEATURES, trunk_id, gone)


def in_uploads(dataset_id: DatasetId, listed: Sequence[ObjectInfo], refs: References, rules: Rules) -> list[Heap]:
    """Of the files of a dataset whose record is not there: all, if nothing knows the dataset and nobody writes it."""
    is_old = all(rules.is_past(info.modified_at) for info in listed)
    if not refs.is_complete or dataset_id in refs.datasets or not is_old:
        return []
    return _heap(Kind.ORPHANED_UPLOADS, dataset_id, listed)


def in_checks(listed: Iterable[ObjectInfo], rules: Rules) -> list[Heap]:
    """Of what self-tests wrote; they delete it themselves within seconds."""
    return _heap(Kind.CHECKS, "checks", [info for info in listed if rules.is_past(info.modified_at)])


def _unreferred(listed: Iterable[ObjectInfo], refs: References, rules: Rules) -> list[ObjectInfo]:
    return [info for info in listed if info.key not in refs.keys and rules.is_past(info.modified_at)]


def _heap(kind: Kind, where: str, objects: Iterable[ObjectInfo], manifests: Iterable[ObjectInfo] = ()) -> list[Heap]:
    heap = Heap(kind, where, tuple(manifests), tuple(objects))
    return [heap] if heap.everything else []


def total(heaps: Iterable[Heap]) -> Mapping[Kind, tuple[int, int]]:
    """Objects and bytes by kind."""
    counted: dict[Kind, tuple[int, int]] = {}
    for heap in heaps:
        objects, size_bytes = counted.get(heap.kind, (0, 0))
        more_bytes = sum(info.size_bytes for info in heap.everything)
        counted[heap.kind] = (objects + len(heap.everything), size_bytes + more_bytes)
    return counted
