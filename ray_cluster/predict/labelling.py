"""Labels the files of one shard: what became of each of them is one object, written by whoever is first.

An image is read and decoded once, and trunk and tail run on it in the same process, by the code that serving runs. Its
features are neither looked up in the feature cache nor kept there: most images that are labelled are seen once, the
cache is found by a hash of bytes that would have to be read all the same, and its index alone would take longer to read
than many sources to label.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from ray_cluster.predict.snapshot import Shard
from ray_cluster.serve.classifier import Answer, Classifier, Question
from ray_cluster.serve.model_tails import LabelledTail, TailKey, load_tail
from ray_cluster.train.inspection import Refusal, refuse, refuse_unread
from ray_cluster.train.read_ahead import Wanted, read_ahead
from ray_cluster.vision.engines import load_engine
from services.contracts import names
from services.contracts.base import StoredContract
from services.contracts.batch_predictions import LabelledImage
from services.contracts.datasets import QuarantinedFile
from services.contracts.errors import CallerError
from services.contracts.ids import JobId
from services.contracts.models import TrunkManifest
from services.runtime.objects import ObjectStore


class ShardResult(StoredContract):
    """What became of each file of a shard, each list in order of paths."""

    labelled: list[LabelledImage]
    quarantined: list[QuarantinedFile]


class Labeller:
    """A version, ready to label. For one thread at a time."""

    def __init__(self, classifier: Classifier, model: LabelledTail) -> None:
        self._classifier = classifier
        self._model = model

    @classmethod
    def load(cls, store: ObjectStore, trunk: TrunkManifest, engine_name: str, model: TailKey) -> "Labeller":
        """Loads the version's trunk into that engine, on one thread, and its tail. Raises as `load_tail` and
        `load_engine` do."""
        tail = load_tail(store, trunk, model)
        return cls(Classifier([load_engine(store, trunk, engine_name, threads=1)], trunk.image_size), tail)

    def label_shard(self, source: ObjectStore, shard: Shard, top_k: int) -> ShardResult:
        """A pure function of the files' bytes. Raises `ObjectStoreUnavailable`; a bad file is a result."""
        refused = [refuse_unread(file.key, file.size_bytes) for file in shard.files]
        to_read = [file for file, refusal in zip(shard.files, refused, strict=True) if refusal is None]
        contents = read_ahead(source.get, to_read)
        labelling = self._label(to_read, contents, top_k)
        result = ShardResult(labelled=[], quarantined=[])
        for file, refusal in zip(shard.files, refused, strict=True):
            labelled = refusal or next(labelling)
            if isinstance(labelled, Refusal):
                quarantined = QuarantinedFile(path=file.key, reason=labelled.reason, message=labelled.message)
                result.quarantined.append(quarantined)
            else:
                result.labelled.append(labelled)
        return result

    def _label(
        self, files: Sequence[Wanted], contents: Iterator[Future[bytes]], top_k: int
    ) -> Iterator[LabelledImage | Refusal]:
        """What becomes of each file, in order; as many at a time as the engine wants."""
        size = self._classifier.batch_size
        for start in range(0, len(files), size):
            batch = [(file.key, _read(next(contents))) for file in files[start : start + size]]
            questions = [Question(data, self._model, top_k) for _, data in batch if isinstance(data, bytes)]
            answers = iter(self._classifier.answer(questions))
            for path, data in batch:
                yield data if isinstance(data, Refusal) else _judge(path, data, next(answers))


def _read(content: Future[bytes]) -> bytes | Refusal:
    try:
        return content.result()
    except CallerError as error:
        return refuse(error)


def _judge(path: str, data: bytes, answer: Answer | Exception) -> LabelledImage | Refusal:
    if isinstance(answer, CallerError):
        return refuse(answer)
    if isinstance(answer, Exception):
        raise answer
    return LabelledImage(path=path, sha256=hashlib.sha256(data).hexdigest(), predictions=answer.predictions)


def label_shard(
    store: ObjectStore,
    source: ObjectStore,
    job_id: JobId,
    shard: Shard,
    top_k: int,
    load: Callable[[], Labeller],
) -> None:
    """Labels the shard unless that is done, and writes its result unless somebody was faster. `load` gives what labels,
    where it is needed."""
    key = names.prediction_shard(job_id, shard.number)
    if store.head(key) is not None:
        return
    result = load().label_shard(source, shard, top_k)
    store.put(key, result.model_dump_json().encode(), if_absent=True)


_labellers: dict[tuple[str, str, TailKey], Labeller] = {}
_labellers_lock = threading.Lock()


def load_labeller(store: ObjectStore, trunk: TrunkManifest, engine_name: str, model: TailKey) -> Labeller:
    """Loaded once per process, which labels many shards. Raises as `Labeller.load` does."""
    with _labellers_lock:
        key = (store.uri, engine_name, model)
        if key not in _labellers:
            _labellers.clear()  # a process seldom goes back to an earlier version, and each holds its weights
            _labellers[key] = Labeller.load(store, trunk, engine_name, model)
        return _labellers[key]
