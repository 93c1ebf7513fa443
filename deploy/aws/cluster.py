"""The cluster's YAML for `ray up`, from the settings. Pure."""

from typing import Any

from deploy.aws.environment import DASHBOARD_PORT, GATEWAY_HOME, TLS_FOLDER
from deploy.aws.node_types import HEAD_TYPE, worker_types
from deploy.aws.settings import AwsSettings
from ray_cluster.autoscaling.aws import FallbackProvider
from ray_cluster.train.machines import MARKET_LABEL

RAY_PORT = 6379
RAY_CONTAINER = "rekindle-ray"
GATEWAY_CONTAINER = "rekindle-gateway"
CLUSTER_FOLDER = "/etc/rekindle"
CLUSTER_ENV = "cluster.env"
GATEWAY_ENV = "/tmp/rekindle/gateway.env"  # noqa: S108 - where Ray mirrors it on the head, readable by its owner only
GATEWAY_TLS = "/tmp/rekindle/tls"  # noqa: S108 - as above
_OPEN_FILES = 65536
_WATCHER = "python -m ray_cluster.spot.watcher"


def head_role(settings: AwsSettings) -> str:
    """Name of the head's role and instance profile."""
    return f"rekindle-{settings.name}-head"


def worker_role(settings: AwsSettings) -> str:
    """Name of the workers' role and instance profile."""
    return f"rekindle-{settings.name}-worker"


def on_host(settings: AwsSettings, path: str) -> str:
    """Where the machine itself has what Ray copied to `path` for its container."""
    return f"/tmp/ray_tmp_mount/{settings.name}{path}"  # noqa: S108 - Ray's own folder


def render(settings: AwsSettings, *, node_group: str, head_group: str, cluster_folder: str) -> dict[str, Any]:
    """What `ray up` reads.

    Args:
        node_group: Id of the security group of all machines.
        head_group: Id of the head's own, in addition.
        cluster_folder: The folder on this machine that every machine gets, with the environment file in it.
    """
    env = on_host(settings, f"{CLUSTER_FOLDER}/{CLUSTER_ENV}")
    login = ecr_login(settings)
    gpu = {"worker_image": settings.worker_image, "worker_run_options": ["--gpus=all"], "pull_before_run": True}
    workers = worker_types(settings, _node_config(settings, [node_group], worker_role(settings)))
    return {
        "cluster_name": settings.name,
        "max_workers": settings.max_workers,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": settings.idle_minutes,
        "provider": _provider(settings),
        "auth": {"ssh_user": settings.ssh_user, "ssh_private_key": str(settings.ssh_private_key)},
        "docker": {
            "image": settings.head_image,
            "container_name": RAY_CONTAINER,
            "pull_before_run": True,
            "run_options": [f"--env-file={env}", "--init", f"--ulimit=nofile={_OPEN_FILES}:{_OPEN_FILES}"],
        },
        "available_node_types": {
            HEAD_TYPE: _head_type(settings, [node_group, head_group]),
            **{name: {**each, "docker": gpu} for name, each in workers.items()},
        },
        "head_node_type": HEAD_TYPE,
        "file_mounts": {CLUSTER_FOLDER: cluster_folder},
        "initialization_commands": [login] if login else [],
        "head_start_ray_commands": ["ray stop", _start_head()],
        "worker_start_ray_commands": ["ray stop", _start_worker(), _watch()],
        # A provider of type `external` gets no defaults.
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }


def _provider(settings: AwsSettings) -> dict[str, Any]:
    return {
        "type": "external",
        "module": f"{FallbackProvider.__module__}.{FallbackProvider.__name__}",
        "region": settings.region,
        **({} if settings.subnets else {"availability_zone": ",".join(settings.zones)}),
        "cache_stopped_nodes": False,  # a stopped machine costs its disk, and a spot machine cannot be stopped
        "use_internal_ips": False,
        "cool_off_s": settings.cool_off_s,
        "max_on_demand_workers": settings.max_on_demand_workers,
    }


def _node_config(settings: AwsSettings, groups: list[str], role: str) -> dict[str, Any]:
    disk = {"VolumeSize": settings.disk_gib, "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True}
    return {
        "ImageId": settings.ami,
        "KeyName": settings.ssh_key_name,
        "SecurityGroupIds": groups,
        **({"SubnetIds": list(settings.subnets)} if settings.subnets else {}),
        "IamInstanceProfile": {"Name": role},
        # Version 2 only. A container is one hop further away than the machine.
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 2},
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
    }


def _head_type(settings: AwsSettings, groups: list[str]) -> dict[str, Any]:
    """On demand, and without CPUs for work: what runs on it is what the cluster cannot lose."""
    node_config = _node_config(settings, groups, head_role(settings))
    return {
        "resources": {"CPU": 0},
        "labels": {MARKET_LABEL: "on-demand"},
        "min_workers": 0,
        "max_workers": 0,
        "node_config": {**node_config, "InstanceType": settings.head_instance_type},
    }


def _start_head() -> str:
    return (
        f"ulimit -n {_OPEN_FILES}; ray start --head --port={RAY_PORT} --num-cpus=0 --disable-usage-stats "
        f"--dashboard-host=127.0.0.1 --dashboard-port={DASHBOARD_PORT} "
        "--autoscaling-config=~/ray_bootstrap_config.yaml"
    )


def _start_worker() -> str:
    return (
        f"ulimit -n {_OPEN_FILES}; machine=$(python -m ray_cluster.spot.market --environment) && "
        f"env $machine ray start --address=$RAY_HEAD_IP:{RAY_PORT} --disable-usage-stats"
    )


def _watch() -> str:
    """Outlives the shell that starts it, and one that crashed is started again."""
    loop = f"until {_WATCHER}; do sleep 2; done"
    return f"setsid nohup bash -c '{loop}' >> /tmp/spot-watcher.log 2>&1 < /dev/null &"


def ecr_login(settings: AwsSettings) -> str | None:
    """Lets Docker pull from the account's ECR, with the machine's role; None where no image is there."""
    images = (settings.gateway_image, settings.head_image, settings.worker_image)
    registries = sorted({image.partition("/")[0] for image in images if ".dkr.ecr." in image.partition("/")[0]})
    return (
        " && ".join(
            f"aws ecr get-login-password --region {registry.split('.')[3]} | "
            f"docker login --username AWS --password-stdin {registry}"
            for registry in registries
        )
        or None
    )


def start_gateway(settings: AwsSettings, *, restore: bool) -> str:
    """The shell command that starts the gateway on the head, or replaces the one that runs.

    With `restore` its database is rebuilt from the bucket before: the head's disk went with the last head. That adds
    what is missing and changes nothing else; what cannot be read is told and does not keep the gateway from starting.
    """
    env = on_host(settings, GATEWAY_ENV)
    tls = f" --volume {on_host(settings, GATEWAY_TLS)}:{TLS_FOLDER}:ro" if settings.tls_files else ""
    shared = f"--network host --env-file {env} --volume rekindle-home:{GATEWAY_HOME}{tls}"
    image = settings.gateway_image
    login = ecr_login(settings)
    rebuild = f"docker run --rm {shared} {image} rekindle restore --yes || echo 'restore is incomplete, see above'"
    steps = [
        *([login] if login else []),
        f"docker pull --quiet {image}",
        f"(docker rm --force {GATEWAY_CONTAINER} || true)",
        *([f"({rebuild})"] if restore else []),
        f"docker run --detach --name {GATEWAY_CONTAINER} --restart unless-stopped {shared} "
        f"--log-opt max-size=50m --log-opt max-file=4 {image}",
    ]
    return " && ".join(steps)
