"""The name of every object in the bucket. Nobody else spells a key.

Everything under `trunks/` and `features/` is content-addressed and may be rebuilt; the rest is what `rekindle
restore` rebuilds a lost database from. Of the objects of one thing its manifest is always written last.
"""

from services.contracts.ids import DatasetId, JobId, TrunkId

# --- datasets ---


def dataset_record(dataset_id: DatasetId) -> str:
    """The dataset as it was registered (`Dataset`)."""
    return f"datasets/{dataset_id}/dataset.json"


def dataset_files(dataset_id: DatasetId) -> str:
    """Prefix of uploaded images; below it the layout is the user's: `<class>/<file>` or `<split>/<class>/<file>`."""
    return f"datasets/{dataset_id}/files/"


def dataset_manifests(dataset_id: DatasetId) -> str:
    """Prefix of the dataset's manifests."""
    return f"datasets/{dataset_id}/manifests/"


def dataset_manifest(dataset_id: DatasetId, fingerprint: str) -> str:
    """Preflight's result (`DatasetManifest`) for one listing of the dataset and one way to split it."""
    return f"{dataset_manifests(dataset_id)}{fingerprint}.json"


def dataset_inspections(dataset_id: DatasetId, version: str) -> str:
    """Prefix of what preflight found in the dataset's files, by the version of what it takes a file for."""
    return f"datasets/{dataset_id}/inspections/v{version}/"


# --- jobs ---


def job_spec(job_id: JobId) -> str:
    """The accepted job (`JobRecord`), written before the request is answered."""
    return f"jobs/{job_id}/spec.json"


def job_outcome(job_id: JobId) -> str:
    """How the job ended (`JobOutcome`)."""
    return f"jobs/{job_id}/outcome.json"


def job_cancellation(job_id: JobId) -> str:
    """A user asked for the job to be stopped (`JobCancellation`)."""
    return f"jobs/{job_id}/cancel.json"


def job_fence(job_id: JobId) -> str:
    """Who may commit (`Fence`): the newest attempt and the newest term of it."""
    return f"jobs/{job_id}/fence.json"


def job_backbone_choice(job_id: JobId) -> str:
    """Which backbone a job with `backbone: auto` has (`BackboneChoice`), created only if absent."""
    return f"jobs/{job_id}/backbone_choice.json"


def job_engine(job_id: JobId) -> str:
    """The engine that runs the job's trunks, in all its attempts (`EngineChoice`), created only if absent."""
    return f"jobs/{job_id}/engine.json"


def attempts_prefix(job_id: JobId) -> str:
    return f"jobs/{job_id}/attempts/"


def attempt_outcome(job_id: JobId, attempt: int) -> str:
    """How an attempt ended (`AttemptOutcome`), created only if absent."""
    return f"jobs/{job_id}/attempts/a{attempt}/outcome.json"


def attempt_driver(job_id: JobId, attempt: int) -> str:
    """Where an attempt runs that has no Ray job of its own (`AttemptDriver`)."""
    return f"jobs/{job_id}/attempts/a{attempt}/driver.json"


def attempt_progress_prefix(job_id: JobId, attempt: int) -> str:
    return f"jobs/{job_id}/attempts/a{attempt}/progress/"


def attempt_progress(job_id: JobId, attempt: int, seq: int) -> str:
    """One `ProgressRecord`. Keys sort by `seq`, so a reader asks for what comes after the last key it saw."""
    return f"{attempt_progress_prefix(job_id, attempt)}{seq:08d}.json"


def attempt_trainers(job_id: JobId, attempt: int) -> str:
    return f"jobs/{job_id}/attempts/a{attempt}/trainers/"


def attempt_trainer(job_id: JobId, attempt: int, term: int) -> str:
    """Which machine trained, from when on (`TrainerRecord`)."""
    return f"{attempt_trainers(job_id, attempt)}t{term:04d}.json"


def checkpoints_prefix(job_id: JobId) -> str:
    return f"jobs/{job_id}/checkpoints/"


def checkpoint_prefix(job_id: JobId, attempt: int, term: int, step: int) -> str:
    """Objects of one checkpoint: a fresh prefix per attempt, term and step."""
    return f"jobs/{job_id}/checkpoints/a{attempt:04d}-t{term:04d}-s{step:010d}/"


def checkpoint_manifest(job_id: JobId, attempt: int, term: int, step: int) -> str:
    """`CheckpointManifest`; the checkpoint exists if and only if this object does."""
    return f"{checkpoint_prefix(job_id, attempt, term, step)}manifest.json"


def job_report(job_id: JobId, attempt: int) -> str:
    """Per-image predictions on the evaluated split, JSON lines."""
    return f"jobs/{job_id}/attempts/a{attempt}/predictions.jsonl"


def spare_driver() -> str:
    """The driver that waits for whatever is next (`SpareDriver`)."""
    return "spare_driver.json"


# --- batch predictions: their records and reports are a job's, above ---


def predictions_prefix(job_id: JobId) -> str:
    """All that a batch prediction read and made."""
    return f"predictions/{job_id}/"


def prediction_snapshot(job_id: JobId) -> str:
    """Which files there are (`Snapshot`), created only if absent: every attempt labels the same ones."""
    return f"predictions/{job_id}/snapshot.json"


def prediction_page(job_id: JobId, attempt: int, page: int) -> str:
    """A part of the files that an attempt listed. Its snapshot counts if it was the first."""
    return f"predictions/{job_id}/files/a{attempt:04d}/{page:06d}.json"


def prediction_shards(job_id: JobId) -> str:
    """Prefix of the shards' results."""
    return f"predictions/{job_id}/shards/"


def prediction_shard(job_id: JobId, number: int) -> str:
    """What became of each file of a shard (`ShardResult`), created only if absent. Keys sort by number."""
    return f"{prediction_shards(job_id)}{number:08d}.json"


def prediction_file(job_id: JobId, file_name: str) -> str:
    """A file of the results, e.g. `predictions.csv`."""
    return f"predictions/{job_id}/{file_name}"


def prediction_result(job_id: JobId) -> str:
    """`BatchResult`, written last, created only if absent."""
    return f"predictions/{job_id}/result.json"


# --- trunks and features ---


def trunk_source(source_sha256: str) -> str:
    """Maps a trunk's recipe (`TrunkRecipe.sha256()`) to the trunk it gave (`TrunkManifest`)."""
    return f"trunks/sources/{source_sha256}.json"


def trunk_manifest(trunk_id: TrunkId) -> str:
    return f"trunks/{trunk_id}/trunk.json"


def trunk_artefact(trunk_id: TrunkId, file_name: str) -> str:
    """One engine's form of the trunk, or a pretrained top, e.g. `trunk.tflite`."""
    return f"trunks/{trunk_id}/{file_name}"


def trunk_engine(trunk_id: TrunkId, kind: str) -> str:
    """The engine that was measured to be the best (`EngineChoice`), created only if absent. `kind` names the device and
    the versions of the libraries."""
    return f"trunks/{trunk_id}/engines/{kind}.json"


def features_prefix(trunk_id: TrunkId) -> str:
    return f"features/{trunk_id}/"


def feature_shard(trunk_id: TrunkId, shard_sha256: str) -> str:
    """Features of many images, named by what is in it and the engine that computed it."""
    return f"features/{trunk_id}/{shard_sha256}.safetensors"


# --- models ---


def model_prefix(model_name: str) -> str:
    return f"models/{model_name}/"


def model_claim(model_name: str, version: int) -> str:
    """Who may publish this version (`VersionClaim`), created only if absent."""
    return f"models/{model_name}/v{version}/claim.json"


def model_object(model_name: str, version: int, attempt: int, file_name: str) -> str:
    """One of a version's objects, under a prefix of the attempt that wrote it."""
    return f"models/{model_name}/v{version}/a{attempt}/{file_name}"


def model_attempts(model_name: str, version: int) -> str:
    """Prefix of what attempts wrote for this version, published or not."""
    return f"models/{model_name}/v{version}/a"


def model_manifest(model_name: str, version: int) -> str:
    """`ModelManifest`; the version exists if and only if this object does."""
    return f"models/{model_name}/v{version}/model.json"


def model_deletion(model_name: str, version: int) -> str:
    """`VersionDeletion`: the version was deleted by a user and is no longer shown or served."""
    return f"models/{model_name}/v{version}/deleted.json"


def model_exports(model_name: str, version: int) -> str:
    """Prefix of a version's exports."""
    return f"models/{model_name}/v{version}/exports/"


def model_export(model_name: str, version: int, export_format: str) -> str:
    """`ExportManifest`, written after its archive."""
    return f"{model_exports(model_name, version)}{export_format}.json"


def model_export_archive(model_name: str, version: int, export_format: str, sha256: str) -> str:
    """An archive, named by its content: builders that run at a time cannot overwrite each other's."""
    return f"{model_exports(model_name, version)}{export_format}-{sha256[:16]}.zip"


def model_export_failures(model_name: str, version: int, export_format: str) -> str:
    """Prefix of what became of builds that left no archive."""
    return f"{model_exports(model_name, version)}{export_format}-failures/"


def model_export_failure(model_name: str, version: int, export_format: str, build: int) -> str:
    """`ExportFailure`, created only if absent. Keys sort by build."""
    return f"{model_export_failures(model_name, version, export_format)}{build:06d}.json"


def model_aliases(model_name: str) -> str:
    return f"models/{model_name}/aliases/"


def model_alias(model_name: str, alias: str) -> str:
    """`AliasRecord`, so that aliases survive the loss of the database."""
    return f"models/{model_name}/aliases/{alias}.json"


# --- the store itself ---


def store_checks() -> str:
    """Prefix of all that self-tests wrote."""
    return "checks/"


def store_check(token: str) -> str:
    """A short-lived object that the object store's self-test writes and deletes."""
    return f"{store_checks()}{token}"
