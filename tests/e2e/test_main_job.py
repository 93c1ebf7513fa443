"""The main job as users do it: by command line and by client, on drawn images and on real ones."""

import json
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from services.client import ApiError, JobFailed
from services.contracts.backbones import BackboneName
from services.contracts.jobs import TRAINING_STAGES, JobState, Stage, TrainingJobSpec, WeightsUri
from services.contracts.predictions import ImagePredicted
from tests.servers.local_stack import LocalStack

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def trained(stack: LocalStack, drawings: Path) -> dict[str, str]:
    """The job that `rekindle train` ran on the drawn images."""
    return stack.run_json("train", drawings, "--backbone", "rekindle_tiny", "--model", "objects")


def test_a_folder_becomes_a_model_by_one_command(trained: dict[str, str], stack: LocalStack) -> None:
    assert trained["state"] == "succeeded"
    version = stack.run_json("models", "show", "objects")
    assert version["version"] == 1
    assert version["labels"] == sorted(version["labels"])
    assert version["evaluation"]["split"] == "test"
    assert version["evaluation"]["accuracy"] > 0.4  # six classes: guessing gives 0.17


def test_the_model_labels_images_it_has_not_seen(trained: dict[str, str], stack: LocalStack, drawings: Path) -> None:
    images = sorted((drawings / "test").glob("*/*.jpg"))
    answer = stack.run_json("predict", "objects", *images, "--top-k", "2")
    assert [result["image"] for result in answer["results"]] == [image.name for image in images]
    best = [result["predictions"][0]["label"] for result in answer["results"]]
    right = sum(label == image.parent.name for label, image in zip(best, images, strict=True))
    version = stack.run_json("models", "show", "objects")
    assert right / len(images) == pytest.approx(version["evaluation"]["accuracy"])


@pytest.fixture(scope="module")
def again(trained: dict[str, str], stack: LocalStack) -> dict[str, Any]:
    """The job that the same command ran once more."""
    return stack.run_json("train", "objects", "--backbone", "rekindle_tiny", "--model", "objects")


def test_the_same_command_again_makes_a_second_version_from_what_is_known(
    again: dict[str, Any], stack: LocalStack
) -> None:
    assert again["result"]["version"] == 2
    skipped = {timing["stage"] for timing in again["stages"] if timing["skipped"]}
    assert {"preflight", "features"} <= skipped
    shas = {stack.run_json("models", "show", "objects", "--version", str(n))["weights_sha256"] for n in (1, 2)}
    assert len(shas) == 1, "the same images, spec and seed gave other weights"


def test_an_alias_leads_to_the_version_it_was_pointed_at(
    trained: dict[str, str], stack: LocalStack, drawings: Path
) -> None:
    stack.run("models", "alias", "objects", "production", "1")
    image = next((drawings / "test").glob("*/*.jpg"))
    assert stack.run_json("predict", "objects", image, "--alias", "production")["version"] == 1
    refused = stack.run("models", "alias", "objects", "canary", "1", "--expect", "7", status=1)
    assert "error: " in refused.stderr


def test_a_second_version_stands_beside_the_first(trained: dict[str, str], stack: LocalStack, drawings: Path) -> None:
    """Both versions have the same weights, so the shadow agrees wherever it has its say."""
    images = sorted((drawings / "test").glob("*/*.jpg"))[:6]
    assert (
        "v1 0.5, v2 0.5" in stack.run("models", "alias", "objects", "ab", "1", "--split", "2", "--weight", "0.5").stdout
    )
    answers = [stack.run_json("predict", "objects", *images, "--alias", "ab") for _ in range(2)]
    assert {answer["version"] for answer in answers} <= {1, 2}
    assert "shadow v2" in stack.run("models", "alias", "objects", "trial", "1", "--shadow", "2").stdout
    assert "trial (shadow)" in stack.run("models", "show", "objects").stdout
    assert stack.run_json("predict", "objects", *images, "--alias", "trial")["version"] == 1
    labels = 'alias="trial",challenger="2",model="objects",outcome="agreed",version="1"'
    line = f"rekindle_alias_shadow_images_total{{{labels}}} 6.0"
    deadline_s = time.monotonic() + 20
    while line not in (shown := httpx2.get(f"{stack.url}/metrics", trust_env=False).text):
        assert time.monotonic() < deadline_s, [each for each in shown.splitlines() if "rekindle_alias" in each]
        time.sleep(0.1)


def test_people_read_what_programs_parse(trained: dict[str, str], stack: LocalStack, drawings: Path) -> None:
    assert trained["id"] in stack.run("jobs", "list").stdout
    shown = stack.run("jobs", "show", trained["id"]).stdout
    assert "Reading every image" in shown
    assert "accuracy" in shown
    assert "objects" in stack.run("models", "list").stdout
    assert "6 classes" in stack.run("datasets", "list").stdout
    lines = stack.run("jobs", "events", trained["id"], "--json").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert stack.run("jobs", "logs", trained["id"]).stdout.strip()
    image = next((drawings / "test").glob("*/*.jpg"))
    assert image.name in stack.run("predict", "objects", image).stdout


def test_a_problem_is_a_sentence_and_exit_status_1(stack: LocalStack, tmp_path: Path) -> None:
    assert "no model 'nothing'" in stack.run("models", "show", "nothing", status=1).stderr
    assert "no folder" in stack.run("train", "nowhere", status=1).stderr
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.jpg").write_bytes(b"no image")
    for arguments in (["train", tmp_path], ["predict", "nothing", tmp_path / "one" / "a.jpg"]):
        result = stack.run(*arguments, status=1)
        assert "Traceback" not in result.stderr
        assert result.stderr.startswith("error: ") or "\nerror: " in result.stderr
    assert "No such option" in stack.run("jobs", "list", "--nonsense", status=2).stderr


def test_corrupt_images_are_set_aside_and_named(stack: LocalStack, drawings: Path, tmp_path: Path) -> None:
    for label in ("boat", "fish"):
        (tmp_path / label).mkdir()
        for image in sorted((drawings / "train" / label).glob("*.jpg")):
            (tmp_path / label / image.name).write_bytes(image.read_bytes())
    (tmp_path / "fish" / "broken.jpg").write_bytes((tmp_path / "fish" / "000.jpg").read_bytes()[:300])
    (tmp_path / "fish" / "empty.jpg").touch()
    with stack.client() as client:
        uploaded = client.datasets.upload_folder("some-broken", tmp_path)
        job = client.training_jobs.create(
            TrainingJobSpec(dataset_id=uploaded.dataset.id, backbone=BackboneName.REKINDLE_TINY)
        )
        assert client.training_jobs.wait(job.id).state is JobState.SUCCEEDED
        report = client.datasets.report(uploaded.dataset.id)
    assert {file.path: file.reason for file in report.quarantined} == {
        "fish/broken.jpg": "corrupt",
        "fish/empty.jpg": "zero_bytes",
    }


def test_a_cancelled_job_ends_and_publishes_nothing(stack: LocalStack, drawings: Path) -> None:
    with stack.client() as client:
        dataset = client.datasets.create_from_prefix("cancelled", drawings.as_uri())
        job = client.training_jobs.create(
            TrainingJobSpec(dataset_id=dataset.id, backbone=BackboneName.REKINDLE_TINY, seed=5)
        )
        client.training_jobs.cancel(job.id)
        with pytest.raises(JobFailed) as ended:
            client.training_jobs.wait(job.id, timeout_s=120)
        assert ended.value.job.state is JobState.CANCELLED
        with pytest.raises(ApiError) as missing:
            client.models.get("cancelled")
    assert missing.value.code == "not_found"


# --- real images, pretrained weights --------------------------------------------------------------------------------


def test_real_images_by_the_client(stack: LocalStack, data_dir: Path, mobilenet_weights: Path) -> None:
    folder = data_dir / "datasets" / "hemlock_cherry"
    with stack.client() as client:
        uploaded = client.datasets.upload_folder("hemlock-cherry", folder)
        assert uploaded.skipped == ["SOURCE.txt"]
        job = client.training_jobs.create(
            TrainingJobSpec(
                dataset_id=uploaded.dataset.id,
                backbone=BackboneName.MOBILENET_V2,
                weights=WeightsUri(uri=mobilenet_weights.as_uri()),
            )
        )
        finished = client.training_jobs.wait(job.id)
        stages = [timing.stage for timing in finished.stages]
        assert stages == [stage for stage in TRAINING_STAGES if stage is not Stage.FINE_TUNE]
        result = client.predict("hemlock-cherry", folder / "test" / "hemlock" / "test_image.jpg").results[0]
    assert isinstance(result, ImagePredicted)
    assert result.predictions[0].label == "hemlock"


def test_a_head_on_real_photographs_is_as_good_as_a_linear_probe(
    stack: LocalStack, data_dir: Path, mobilenet_weights: Path
) -> None:
    with stack.client() as client:
        dataset = client.datasets.create_from_prefix("trash6", (data_dir / "datasets" / "trash6").as_uri())
        job = client.training_jobs.create(
            TrainingJobSpec(dataset_id=dataset.id, weights=WeightsUri(uri=mobilenet_weights.as_uri()), seed=1)
        )
        finished = client.training_jobs.wait(job.id)
    assert finished.result is not None
    assert finished.result.evaluated_split == "test"
    assert finished.result.accuracy is not None
    assert finished.result.accuracy >= 0.73


def test_the_pretrained_classifier_knows_what_it_was_trained_on(stack: LocalStack, data_dir: Path) -> None:
    folder = data_dir / "datasets" / "produce10"
    names = json.loads((folder / "imagenet_labels.json").read_text())
    stack.wait_for_model("base")
    with stack.client() as client:
        for label, enough in (("granny_smith", 0.9), ("zucchini", 0.9), ("pineapple", 0.8)):
            images = sorted((folder / "test" / label).iterdir())[:16]
            results = client.predict("base", images).results
            best = [result.predictions[0] for result in results if isinstance(result, ImagePredicted)]
            expected = (names[label]["imagenet_index"], names[label]["imagenet_name"])
            right = sum((prediction.index, prediction.label) == expected for prediction in best)
            assert right >= enough * len(images), (label, [prediction.label for prediction in best])
