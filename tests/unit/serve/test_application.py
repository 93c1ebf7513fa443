"""The Serve application that a trunk's arguments give."""

import inspect

import pytest
from pydantic import BaseModel, ValidationError
from ray import serve
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

from ray_cluster.serve.application import build
from ray_cluster.serve.service import MAX_BATCH
from services.contracts.serving import IMPORT_PATH, TrunkApplicationArgs

ARGS = {"trunk_id": "a" * 64, "bucket_uri": "file:///tmp/bucket"}


def deployment_of(**options: object) -> serve.Deployment:
    """As Serve builds an application from its declarative config."""
    application = call_user_app_builder_with_args_if_necessary(build, {**ARGS, **options})
    return application._bound_deployment


def test_the_import_path_names_the_builder() -> None:
    assert f"{build.__module__}:{build.__name__}" == IMPORT_PATH
    annotation = next(iter(inspect.signature(build).parameters.values())).annotation
    assert issubclass(annotation, BaseModel)


def test_serve_validates_the_arguments_and_replicas_get_all_of_them() -> None:
    deployment = deployment_of(num_cpus=2, num_gpus=0.5, max_ongoing_requests=7, max_queued_requests=9)
    assert deployment.ray_actor_options == {"num_cpus": 2.0, "num_gpus": 0.5}
    assert (deployment.max_ongoing_requests, deployment.max_queued_requests) == (7, 9)
    (given,) = deployment.init_args
    expected = TrunkApplicationArgs.model_validate(
        {**ARGS, "num_cpus": 2, "num_gpus": 0.5, "max_ongoing_requests": 7, "max_queued_requests": 9}
    )
    assert TrunkApplicationArgs.model_validate(given) == expected
    with pytest.raises(ValidationError):
        deployment_of(num_cpus="many")


def test_overload_is_answered_with_retry_after() -> None:
    config = deployment_of().backpressure_config
    assert config.status_code == 503
    assert config.retry_after_s is not None
    assert config.retry_after_s > 0


def test_a_fixed_number_of_replicas_or_autoscaling() -> None:
    fixed = deployment_of(min_replicas=2, max_replicas=2)
    assert fixed.num_replicas == 2
    assert fixed._deployment_config.autoscaling_config is None
    scaled = deployment_of(min_replicas=1, max_replicas=5, target_ongoing_requests=9)._deployment_config
    autoscaling = scaled.autoscaling_config
    assert (autoscaling.min_replicas, autoscaling.max_replicas) == (1, 5)
    assert autoscaling.target_ongoing_requests == 9


def test_a_replica_takes_more_requests_than_wait_in_it_so_that_it_and_not_serve_decides_who_is_refused() -> None:
    args = TrunkApplicationArgs.model_validate(ARGS)
    assert args.max_ongoing_requests >= args.max_waiting_images + 8 * MAX_BATCH
