"""Builds a trunk's Serve application; `contracts.serving.IMPORT_PATH` names `build`."""

from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from ray_cluster.serve.replica import TrunkReplica
from services.contracts.errors import Overloaded
from services.contracts.serving import TrunkApplicationArgs

DEPLOYMENT_NAME = "trunk"
GRACEFUL_SHUTDOWN_S = 20
HEALTH_CHECK_PERIOD_S = 2
"""Also how long a dead replica can go unnoticed."""
HEALTH_CHECK_TIMEOUT_S = 30

# Without an access log: each request is logged once, by the gateway.
LOGGING = LoggingConfig(encoding="JSON", log_level="INFO", enable_access_log=False)


def build(args: TrunkApplicationArgs) -> serve.Application:
    """The application of one trunk.

    Serve validates its config's `args` by the annotation, so it must stay a class and not become a string.
    """
    deployment = serve.deployment(
        name=DEPLOYMENT_NAME,
        num_replicas=None if args.max_replicas > args.min_replicas else args.min_replicas,
        autoscaling_config=_autoscaling(args) if args.max_replicas > args.min_replicas else None,
        max_surge_percent=100,  # a restart starts the new replica before it stops the only old one
        max_ongoing_requests=args.max_ongoing_requests,
        max_queued_requests=args.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=Overloaded.retry_after_s),
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        graceful_shutdown_timeout_s=GRACEFUL_SHUTDOWN_S,
        graceful_shutdown_wait_loop_s=1,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        logging_config=LOGGING,
    )(TrunkReplica)
    return deployment.bind(args.model_dump(mode="json"))


def _autoscaling(args: TrunkApplicationArgs) -> AutoscalingConfig:
    """Replicas follow the requests in progress."""
    return AutoscalingConfig(
        min_replicas=args.min_replicas,
        max_replicas=args.max_replicas,
        target_ongoing_requests=args.target_ongoing_requests,
    )
