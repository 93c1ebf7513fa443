"""Fine-tuning on a real Ray cluster: it survives a kill in the middle of an epoch, and serves what it evaluated."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from ray_cluster.serve.classifier import Answer, Classifier, Question
from ray_cluster.serve.explainer import Explainer, WhyQuestion
from ray_cluster.serve.model_tails import LabelledTail, TailKey, load_tail
from services.contracts.ids import JobId
from services.contracts.jobs import TRAINING_STAGES, JobEventType, Stage
from services.contracts.models import ModelManifest
from services.contracts.serving import ReplicaExplanation, ReplicaPrediction, trunk_route
from services.training.reconciler.serve_applications import ServeTarget, desired_config
from tests.cluster.attempts import Attempts, wait_until
from tests.cluster.exports import check_exports
from tests.servers.ray_local import LocalRay

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

FINE_TUNING = {"epochs": 150, "batch_size": 16, "dropout": 0.2, "patience": 150}
SPEC = {"seed": 3, "augmentation": "light", "fine_tuning": FINE_TUNING, "checkpoint_interval_s": 1}
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def attempts(ray_local: LocalRay, tmp_path_factory: pytest.TempPathFactory) -> Attempts:
    return Attempts(ray_local, tmp_path_factory.mktemp("bucket").as_uri())


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stripes of three widths in any colours, in noise."""
    folder = tmp_path_factory.mktemp("textures")
    rng = np.random.default_rng(0)
    ramp = np.arange(80)
    for split, count in (("train", 60), ("test", 12)):
        for label, width in (("wide", 16), ("medium", 8), ("narrow", 4)):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                stripes_W = (ramp + rng.integers(0, width)) % width < width / 2
                colours = rng.integers(0, 256, (2, 3))
                pixels = np.where(stripes_W[None, :, None], colours[0], colours[1]) + rng.normal(0, 30, (80, 80, 3))
                picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
                picture.save(folder / split / label / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def undisturbed(attempts: Attempts, textures: Path) -> JobId:
    job = attempts.accept(textures, "undisturbed", train="top_blocks:2", **SPEC)
    assert attempts.run(job) == 0, attempts.log(job)
    return job


def fine_tuned_epochs(attempts: Attempts, job: JobId) -> list[int]:
    records = [each for each in attempts.records(job) if each.type is JobEventType.EPOCH]
    return [int(str(each.data["epoch"])) for each in records if each.stage is Stage.FINE_TUNE]


def lines_of(attempts: Attempts, model: ModelManifest) -> list[dict]:
    assert model.predictions is not None
    return [json.loads(line) for line in attempts.store.get(model.predictions.key).decode().splitlines()]


def test_the_top_blocks_are_trained_and_published(attempts: Attempts, undisturbed: JobId) -> None:
    stages = attempts.stages(undisturbed)
    assert list(stages) == list(TRAINING_STAGES)
    assert not any(timing.skipped for timing in stages.values())
    assert fine_tuned_epochs(attempts, undisturbed)[-1] == FINE_TUNING["epochs"]
    model = attempts.model(undisturbed)
    assert (model.trunk.cut, model.trunk.feature_shape, model.tail_kind) == ("stage3_in", [8, 8, 72], "network")
    assert model.tail_weights is not None
    assert model.evaluation is not None
    assert model.evaluation.image_count == 36
    assert model.evaluation.accuracy > 0.8


def test_what_is_served_is_what_was_evaluated(attempts: Attempts, textures: Path, undisturbed: JobId) -> None:
    model = attempts.model(undisturbed)
    tail = load_tail(attempts.store, model.trunk, TailKey(model.model_name, model.version))
    classifier = Classifier([attempts.engine(undisturbed, model.trunk)], model.trunk.image_size)
    for line in lines_of(attempts, model)[::5]:
        image = (textures / line["path"]).read_bytes()
        check_explained(attempts, model, tail, classifier, image, line)
        (answer,) = classifier.answer([Question(image, tail, 5)])
        assert isinstance(answer, Answer)
        answered = [each.model_dump(include={"label", "probability"}) for each in answer.predictions]
        assert answered == line["predictions"]


def check_explained(
    attempts: Attempts, model: ModelManifest, tail: LabelledTail, classifier: Classifier, image: bytes, line: dict
) -> None:
    """The explanation is of what was evaluated, and its map is that of the last block."""
    question = WhyQuestion(image, TailKey(model.model_name, model.version), tail, None, drawn=False)
    (answer,) = Explainer(attempts.store, model.trunk, classifier.features).answer([question])
    assert isinstance(answer, ReplicaExplanation)
    best = line["predictions"][0]
    assert (answer.prediction.label, len(answer.map)) == (best["label"], 4)
    assert answer.prediction.probability == pytest.approx(best["probability"], abs=1e-5)


def test_a_batch_prediction_labels_as_was_evaluated(attempts: Attempts, textures: Path, undisturbed: JobId) -> None:
    model = attempts.model(undisturbed)
    job = attempts.accept_prediction(textures / "test", model)
    assert attempts.run(job) == 0, attempts.log(job)
    lines = attempts.store.get(attempts.predicted(job).predictions_jsonl.key).decode().splitlines()
    images = {f"test/{image['path']}": image["predictions"] for image in map(json.loads, lines)}
    evaluated = {line["path"]: line["predictions"] for line in lines_of(attempts, model)}
    assert images.keys() == evaluated.keys()
    for path, predictions in images.items():
        assert [{"label": each["label"], "probability": each["probability"]} for each in predictions] == evaluated[path]


def evaluated(attempts: Attempts, model: ModelManifest, textures: Path, step: int) -> dict[Path, list[dict]]:
    return {textures / line["path"]: line["predictions"] for line in lines_of(attempts, model)[::step]}


def test_every_export_says_what_was_evaluated(
    attempts: Attempts, textures: Path, undisturbed: JobId, tmp_path: Path
) -> None:
    model = attempts.model(undisturbed)
    check_exports(attempts.store, model, evaluated(attempts, model, textures, 5), tmp_path)


def test_serve_runs_it_on_an_application_of_its_trunk(
    attempts: Attempts, textures: Path, undisturbed: JobId, serve_url: str
) -> None:
    model = attempts.model(undisturbed)
    port = int(serve_url.rpartition(":")[2])
    config = desired_config([model.trunk.trunk_id], ServeTarget(attempts.bucket_uri, "127.0.0.1", port))
    dashboard = f"{attempts.ray.dashboard_url}/api/serve/applications/"
    httpx2.put(dashboard, json=config, timeout=120).raise_for_status()
    url = f"{serve_url}{trunk_route(model.trunk.trunk_id)}/predict"
    query = {"model": model.model_name, "version": model.version}
    line = lines_of(attempts, model)[0]
    image = (textures / line["path"]).read_bytes()

    def answers() -> httpx2.Response | None:
        try:
            response = httpx2.post(url, params=query, content=image, timeout=60)
        except httpx2.TransportError:
            return None
        return response if response.is_success else None

    wait_until(answers)
    response = answers()
    assert response is not None
    served = ReplicaPrediction.model_validate_json(response.content).predictions
    assert [each.label for each in served] == [each["label"] for each in line["predictions"]]
    expected = [each["probability"] for each in line["predictions"]]
    assert [each.probability for each in served] == pytest.approx(expected, abs=TOLERANCE)


@pytest.fixture
def serve_url(attempts: Attempts) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    httpx2.delete(f"{attempts.ray.dashboard_url}/api/serve/applications/", timeout=60)


def test_a_trainer_killed_in_the_middle_of_an_epoch_changes_no_bit(
    attempts: Attempts, textures: Path, undisturbed: JobId
) -> None:
    spec = {**SPEC, "resources": {"min_workers": 1, "max_workers": 2}}
    job = attempts.accept(textures, "killed", train="top_blocks:2", **spec)
    driver = attempts.start(job)
    leader = find_leader(attempts, job)
    wait_until(lambda: len(fine_tuned_epochs(attempts, job)) > 1 or driver.poll() is not None)
    assert driver.poll() is None, attempts.log(job)
    os.kill(leader, signal.SIGKILL)
    assert fine_tuned_epochs(attempts, job)[-1] < FINE_TUNING["epochs"]
    assert driver.wait(400) == 0, attempts.log(job)
    assert any(each.type is JobEventType.RECOVERY for each in attempts.records(job)), attempts.log(job)
    mine, theirs = attempts.model(job), attempts.model(undisturbed)
    assert mine.tail_sha256 == theirs.tail_sha256
    assert mine.evaluation == theirs.evaluation


FIND_LEADER = """
import os, sys, time, ray
from ray.util.state import list_actors
from ray_cluster.train import trainers
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
found = []
while not found:
    time.sleep(0.1)
    found = [each.name for each in trainers.find() if each.view.work == sys.argv[1] and each.view.running]
print(list_actors(filters=[("name", "=", found[0])])[0].pid)
"""


def find_leader(attempts: Attempts, job: JobId) -> int:
    """The process that fine-tunes the job, as soon as one does."""
    command = [sys.executable, "-c", FIND_LEADER, f"{job}:{Stage.FINE_TUNE}"]
    done = subprocess.run(command, env=attempts.ray.env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.splitlines()[-1])


def test_the_whole_network_is_trained_served_and_exported_alike(
    attempts: Attempts, textures: Path, tmp_path: Path
) -> None:
    spec = {**SPEC, "fine_tuning": {**FINE_TUNING, "epochs": 2}}
    job = attempts.accept(textures, "whole", train="all", **spec)
    assert attempts.run(job) == 0, attempts.log(job)
    model = attempts.model(job)
    assert (model.trunk.cut, model.trunk.artefacts, model.tail_kind) == ("input", {}, "network")
    tail = load_tail(attempts.store, model.trunk, TailKey(model.model_name, model.version))
    classifier = Classifier([attempts.engine(job, model.trunk)], model.trunk.image_size)
    for line in lines_of(attempts, model)[::9]:
        image = (textures / line["path"]).read_bytes()
        check_explained(attempts, model, tail, classifier, image, line)
        (answer,) = classifier.answer([Question(image, tail, 5)])
        assert isinstance(answer, Answer)
        answered = [each.model_dump(include={"label", "probability"}) for each in answer.predictions]
        assert answered == line["predictions"]
    check_exports(attempts.store, model, evaluated(attempts, model, textures, 9), tmp_path)
