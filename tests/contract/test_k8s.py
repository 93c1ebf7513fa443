"""deploy/k8s against schemas, against Ray's own autoscaler, and against what the processes in it need. No cluster."""

import argparse
import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount
from ray.core.generated.common_pb2 import LabelSelectorOperator

from ray_cluster.spot import drain
from ray_cluster.train.machines import ACCELERATOR_LABEL, MARKET_LABEL, Place
from services.inference import main as inference
from services.local import app as both
from services.local.ray_head import CLUSTER_ENVIRONMENT
from services.runtime.settings import Settings
from services.training import main as training
from services.training.reconciler.serve_applications import PROXY_LOCATION
from tests.contract.kustomize import Document, Unsupported, containers, load_all, render

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy/k8s"
KUBERNETES = "1.34"
OVERLAYS = ("eks", "gke", "kind")
MACHINES = ("eks/karpenter", "gke/compute-classes")
FOLDERS = (*OVERLAYS, *MACHINES, "monitoring")
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "k8s_schemas").glob("*.json")}
"""Of custom resources, by kind in lower case: cut down from their definitions; each names where it is from."""
GATEWAYS = ("rekindle-training", "rekindle-inference")
MARKETS = {"any": {"spot", "on-demand"}, "spot": {"spot"}, "on-demand": {"on-demand"}}


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def documents(overlay: str) -> list[Document]:
    return render(K8S / overlay)


def of_kind(documents: Sequence[Document], kind: str) -> dict[str, Document]:
    return {each["metadata"]["name"]: each for each in documents if each["kind"] == kind}


def ray_cluster(documents: Sequence[Document]) -> Document:
    return of_kind(documents, "RayCluster")["rekindle"]["spec"]


def pod_templates(documents: Sequence[Document]) -> Iterator[tuple[str, Document]]:
    """Every pod there will be, with the labels that KubeRay adds to those that it makes."""
    for each in documents:
        if each["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield each["metadata"]["name"], each["spec"]["template"]
        if each["kind"] == "RayCluster":
            head = each["spec"]["headGroupSpec"]
            groups = [("head", head), *((group["groupName"], group) for group in each["spec"]["workerGroupSpecs"])]
            for name, group in groups:
                template = copy.deepcopy(group["template"])
                template.setdefault("metadata", {})["labels"] = {
                    "ray.io/cluster": each["metadata"]["name"],
                    "ray.io/node-type": "head" if group is head else "worker",
                }
                yield name, template


def selects(selector: Document, labels: Document) -> bool:
    """Kubernetes' label selectors, for what is used of them."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def selected(documents: Sequence[Document], selector: Document) -> list[str]:
    return [name for name, each in pod_templates(documents) if selects(selector, each["metadata"]["labels"])]


def ports(template: Document) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for each in containers(template) for port in each.get("ports", [])}


def templates(documents: Sequence[Document]) -> dict[str, Document]:
    return dict(pod_templates(documents))


# --- schemas ----------------------------------------------------------------------------------------------------------


def check(document: Document) -> None:
    """Raises for a field that its kind has not, or a value that the field cannot have."""
    schema = SCHEMAS.get(document["kind"].lower())
    if schema is not None:
        jsonschema.Draft202012Validator(schema).validate(document)
        if document["kind"] == "RayCluster":
            for _, template in pod_templates([document]):
                kubernetes_validate.validate(
                    {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template},
                    KUBERNETES,
                    strict=True,
                )
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_document_is_as_its_schema_says(folder: str) -> None:
    documents = render(K8S / folder)
    assert documents
    for document in documents:
        check(document)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", "spec/replica", 1),
        ("Service", "spec/ports/0/port", "http"),
        ("HorizontalPodAutoscaler", "spec/maxReplicas", "many"),
        ("RayCluster", "spec/gcsFaultToleranceOptions/address", "redis"),
        ("RayCluster", "spec/autoscalerOptions/version", "v3"),
        ("RayCluster", "spec/workerGroupSpecs/0/template/spec/nodeSelectors", {}),
        ("NodePool", "spec/template/spec/taint", []),
        ("PodMonitor", "spec/podMetricsEndpoints/0/every", "15s"),
        ("PrometheusRule", "spec/groups/0/rules/0/for", "5 minutes"),
        ("ComputeClass", "spec/priorities/0/spots", True),
        ("BackendConfig", "spec/timeoutSec", "1h"),
    ],
)
def test_a_mistake_would_be_found(kind: str, path: str, value: object) -> None:
    documents = [each for folder in ("eks", "gke", *MACHINES, "monitoring") for each in render(K8S / folder)]
    wrong = next(each for each in documents if each["kind"] == kind)
    *parents, last = path.split("/")
    place: Any = wrong
    for part in parents:
        place = place[int(part) if isinstance(place, list) else part]
    place[last] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(wrong)


def test_every_file_is_part_of_a_folder_that_is_applied() -> None:
    used = {"base/kustomization.yaml"}
    for folder in (*FOLDERS, "base", "gpu"):
        (kustomization,) = load_all((K8S / folder / "kustomization.yaml").read_text())
        used.add(f"{folder}/kustomization.yaml")
        used |= {f"{folder}/{name}" for name in kustomization.get("resources", []) if name.endswith(".yaml")}
        used |= {f"{folder}/{patch['path']}" for patch in kustomization.get("patches", []) if "path" in patch}
        used |= {f"{folder}/{name}" for each in kustomization.get("configMapGenerator", []) for name in each["files"]}
    assert used == {str(path.relative_to(K8S)) for end in ("yaml", "json") for path in K8S.rglob(f"*.{end}")}


@pytest.mark.parametrize(
    ("kustomization", "why"),
    [
        ("commonLabels: {a: b}", "commonLabels"),
        ("images: [{name: other, newName: x}]", "no container has image other"),
        ("patches: [{target: {kind: Pod}, patch: '[]'}]", "nothing is"),
        ("patches: [{target: {kind: Service}, patch: '[{op: replace, path: /spec/none, value: 1}]'}]", "has nothing"),
        ("patches: [{target: {kind: Service}, patch: '[{op: add, path: /spec/ports, value: 1}]'}]", "already"),
        ("resources: [a.yaml, b.yaml]", "a document twice"),
        ("configMapGenerator: [{name: x, files: [../b.yaml], options: {disableNameSuffixHash: true}}]", "below its"),
        ("namespace: a\nnamespace: b", "twice"),
    ],
)
def test_the_renderer_refuses_what_kustomize_would_not_do(tmp_path: Path, kustomization: str, why: str) -> None:
    service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: []}\n"
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(service)
    resources = "" if "resources" in kustomization else "resources: [a.yaml]\n"
    kind = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
    (tmp_path / "kustomization.yaml").write_text(kind + resources + kustomization)
    with pytest.raises(Unsupported, match=why):
        render(tmp_path)


# --- what refers to what ----------------------------------------------------------------------------------------------


def test_services_budgets_and_policies_select_pods_that_have_their_ports(documents: list[Document]) -> None:
    pods = templates(documents)
    for name, service in of_kind(documents, "Service").items():
        chosen = selected(documents, {"matchLabels": service["spec"]["selector"]})
        assert chosen == [name]
        for port in service["spec"]["ports"]:
            # Some network plugins want a Service's port to be the container's where policies are.
            assert ports(pods[name])[port["targetPort"]] == port["port"]
    for name, budget in of_kind(documents, "PodDisruptionBudget").items():
        assert selected(documents, budget["spec"]["selector"]) == [name]
    for name, policy in of_kind(documents, "NetworkPolicy").items():
        chosen = selected(documents, policy["spec"]["podSelector"])
        assert chosen, name
        for rule in policy["spec"].get("ingress", []):
            offered = {port for each in chosen for port in ports(pods[each]).values()}
            assert {port["port"] for port in rule.get("ports", [])} <= offered, name
            for peer in rule.get("from", []):
                assert "namespaceSelector" in peer or selected(documents, peer["podSelector"]), name


def test_only_who_must_reaches_a_pod(documents: list[Document]) -> None:
    policies = of_kind(documents, "NetworkPolicy")
    assert policies["rekindle-nothing-else"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    reached: dict[int | None, set[str]] = {}
    for rule in policies["rekindle-ray"]["spec"]["ingress"]:
        for peer in rule["from"]:
            who = {"monitoring"} if "namespaceSelector" in peer else set(selected(documents, peer["podSelector"]))
            for port in rule.get("ports", [{"port": None}]):
                reached[port["port"]] = who
    nodes = {"head", *(group["groupName"] for group in ray_cluster(documents)["workerGroupSpecs"])}
    assert reached == {None: nodes, 8265: set(GATEWAYS), 8000: set(GATEWAYS), 8080: {"monitoring"}}
    (redis,) = policies["rekindle-redis"]["spec"]["ingress"]
    assert selected(documents, redis["from"][0]["podSelector"]) == ["head"]


def test_deployments_select_their_own_pods_and_the_autoscaler_the_deployment(documents: list[Document]) -> None:
    for kind in ("Deployment", "StatefulSet"):
        for name, each in of_kind(documents, kind).items():
            assert selected(documents, each["spec"]["selector"]) == [name]
            for spread in each["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
                assert selected(documents, spread["labelSelector"]) == [name]
    (scaler,) = of_kind(documents, "HorizontalPodAutoscaler").values()
    target = of_kind(documents, "Deployment")[scaler["spec"]["scaleTargetRef"]["name"]]
    assert "replicas" not in target["spec"], "applying it anew would undo the autoscaler's"
    assert "cpu" in containers(target)[0]["resources"]["requests"]


def test_accounts_config_and_secrets_that_pods_name_are_there_or_in_the_readme(documents: list[Document]) -> None:
    readme = (K8S / "README.md").read_text().replace("\\\n", "")
    made = {
        (name, key)
        for name, literals in re.findall(r"create secret generic (\S+)((?: +--from-literal=\S+)+)", readme)
        for key in re.findall(r"--from-literal=([\w.]+)=", literals)
    }
    accounts, config = of_kind(documents, "ServiceAccount"), of_kind(documents, "ConfigMap")
    wanted: set[tuple[str, str]] = set()
    for name, template in pod_templates(documents):
        account = template["spec"].get("serviceAccountName")
        assert account in accounts or template["spec"]["automountServiceAccountToken"] is False, name
        for container in containers(template):
            for source in container.get("envFrom", []):
                if "configMapRef" in source:
                    assert source["configMapRef"]["name"] in config
                else:
                    assert source["secretRef"]["name"] in {secret for secret, _ in made}
            for variable in container.get("env", []):
                if "valueFrom" in variable:
                    reference = variable["valueFrom"]["secretKeyRef"]
                    wanted.add((reference["name"], reference["key"]))
    cluster = ray_cluster(documents)
    password = cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
    wanted |= {(password["name"], password["key"]), (cluster["authOptions"]["secretName"], "auth_token")}
    assert wanted <= made
    assert not of_kind(documents, "Secret")


def test_only_the_head_may_ask_kubernetes(documents: list[Document]) -> None:
    accounts = of_kind(documents, "ServiceAccount")
    for name, template in pod_templates(documents):
        account = accounts.get(template["spec"].get("serviceAccountName"), {})
        automount = account.get("automountServiceAccountToken", True)
        assert template["spec"].get("automountServiceAccountToken", automount) is (name == "head"), name


# --- the pods ---------------------------------------------------------------------------------------------------------


def test_images_are_the_dockerfiles_or_have_a_version(overlay: str, documents: list[Document]) -> None:
    dockerfile = (ROOT / "deploy/images/Dockerfile").read_text()
    targets = set(re.findall(r"^FROM \S+ AS (gateway|ray-\w+)$", dockerfile, re.MULTILINE))
    assert targets == {"gateway", "ray-cpu", "ray-gpu"}
    used = set[str]()
    for name, template in pod_templates(documents):
        for container in containers(template):
            image, _, tag = container["image"].rpartition(":")
            if image.endswith("rekindle"):
                assert image == "rekindle" or overlay != "kind", name
                used.add(tag)
                gpus = "nvidia.com/gpu" in container["resources"].get("limits", {})
                assert (tag == "ray-gpu") == gpus, name
            else:
                assert re.search(r"\d", tag), name
    assert used == targets - ({"ray-gpu"} if overlay == "kind" else set())


def test_no_pod_runs_as_root_or_gets_services_as_settings(documents: list[Document]) -> None:
    for name, template in pod_templates(documents):
        spec = template["spec"]
        assert spec["enableServiceLinks"] is False, f"{name}: REKINDLE_INFERENCE_PORT would be a URL"
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(template):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


def settings_of(documents: list[Document], name: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As the gateway reads its environment, with a value for each secret."""
    (container,) = containers(templates(documents)[name])
    (config,) = [each["configMapRef"]["name"] for each in container["envFrom"] if "configMapRef" in each]
    environment = dict(of_kind(documents, "ConfigMap")[config]["data"])
    environment |= {each["name"]: "postgresql://rekindle@host/rekindle" for each in container["env"]}
    known = {f"REKINDLE_{field}".upper() for field in Settings.model_fields}
    assert {each for each in environment if each.startswith("REKINDLE_")} <= known
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    return Settings()


@pytest.mark.parametrize("name", [*GATEWAYS, "rekindle-admin"])
def test_gateways_take_their_environment(documents: list[Document], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(documents, name, monkeypatch)
    assert settings.api_keys_required
    assert settings.bucket_uri.startswith("s3://")
    assert settings.database_url.startswith("postgresql://")
    assert settings.allowed_sources == (settings.bucket_uri,)
    mounts = {mount["mountPath"] for mount in containers(templates(documents)[name])[0]["volumeMounts"]}
    assert {str(settings.home), "/tmp"} <= mounts, "the rest of its file system cannot be written"
    # KubeRay's Service of the head, and the ports that the head has.
    head = ports(templates(documents)["head"])
    assert settings.ray_dashboard_url == f"http://rekindle-head-svc:{head['dashboard']}"
    assert settings.serve_url == f"http://rekindle-head-svc:{head['serve']}"
    assert (settings.serve_host, settings.serve_port) == ("0.0.0.0", head["serve"])
    assert PROXY_LOCATION == "HeadOnly"


@pytest.mark.parametrize("name", GATEWAYS)
def test_gateways_run_what_is_there_and_have_time_to_end(
    documents: list[Document], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = templates(documents)[name]
    (container,) = containers(template)
    settings = settings_of(documents, name, monkeypatch)
    modules = {
        "services.training.main": (training, settings.port, training.GRACEFUL_SHUTDOWN_S),
        "services.inference.main": (
            inference,
            settings.inference_port,
            int(settings.predict_deadline_s) + inference.GRACEFUL_SHUTDOWN_EXTRA_S,
        ),
        "services.local.app": (both, settings.port, both.GRACEFUL_SHUTDOWN_S),
    }
    assert container["command"][:2] == ["python", "-m"]
    module, port, graceful_s = modules[container["command"][2]]
    paths = module.build_app(settings).openapi()["paths"]
    assert ports(template) == {"http": port}
    for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}
        assert path in paths
    sleep_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert template["spec"]["terminationGracePeriodSeconds"] >= sleep_s + graceful_s + 5


def test_every_path_of_the_api_reaches_a_gateway_that_has_it(overlay: str, documents: list[Document]) -> None:
    predictions, others = api_paths("inference"), api_paths("training")
    assert predictions == {"/v1/models/x/predict", "/v1/models/x/explain", "/inceptionV3/predict"}
    commands = {name: containers(templates(documents)[name])[0]["command"][2] for name in GATEWAYS}
    if overlay == "kind":
        assert not of_kind(documents, "Ingress")
        assert commands["rekindle-training"] == "services.local.app"
        return
    (ingress,) = of_kind(documents, "Ingress").values()
    services = of_kind(documents, "Service")
    first = ingress["spec"]["rules"][0]
    for path in predictions | others:
        backend = backend_of(first["http"]["paths"], path)
        assert backend["port"]["name"] in {port["name"] for port in services[backend["name"]]["spec"]["ports"]}
        has = {"rekindle-inference": predictions, "rekindle-training": others}[backend["name"]]
        assert path in has or commands[backend["name"]] == "services.local.app", path


def api_paths(gateway: str) -> set[str]:
    """As a client writes them."""
    paths = json.loads((ROOT / f"docs/openapi/{gateway}.json").read_text())["paths"]
    return {re.sub(r"\{\w+\}", "x", path) for path in paths} - {"/healthz", "/readyz"}


def backend_of(paths: list[Document], path: str) -> Document:
    """Of the path that is matched first, where a longer one comes first."""
    for each in paths:
        wildcard = each["pathType"] == "ImplementationSpecific"
        pattern = re.escape(each["path"]).replace(r"\*", ".*") if wildcard else re.escape(each["path"])
        if re.fullmatch(pattern + (".*" if each["pathType"] == "Prefix" else ""), path):
            return each["backend"]["service"]
    raise AssertionError(path)


def test_monitors_find_the_metrics(documents: list[Document]) -> None:
    monitors = render(K8S / "monitoring")
    (services,) = of_kind(monitors, "ServiceMonitor").values()
    found = {
        name: each
        for name, each in of_kind(documents, "Service").items()
        if selects(services["spec"]["selector"], each["metadata"]["labels"])
    }
    assert found.keys() == set(GATEWAYS)
    for endpoint in services["spec"]["endpoints"]:
        assert all(endpoint["port"] in {port["name"] for port in each["spec"]["ports"]} for each in found.values())
        assert endpoint["path"] == "/metrics"
    (pods,) = of_kind(monitors, "PodMonitor").values()
    chosen = selected(documents, pods["spec"]["selector"])
    assert {"head", "any"} <= set(chosen)
    for endpoint in pods["spec"]["podMetricsEndpoints"]:
        assert all(ports(templates(documents)[name])[endpoint["port"]] == 8080 for name in chosen)


# --- Ray --------------------------------------------------------------------------------------------------------------


def test_the_cluster_is_what_kuberay_accepts(documents: list[Document]) -> None:
    """The operator's own checks, from its `validation.go`."""
    cluster = ray_cluster(documents)
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["authOptions"] == {"mode": "token", "secretName": "rekindle-ray-token"}
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    groups = cluster["workerGroupSpecs"]
    assert len({group["groupName"] for group in groups}) == len(groups)
    for group in (head, *groups):
        assert "labels" not in group["rayStartParams"]
        assert "redis-password" not in group["rayStartParams"]
        assert not ("resources" in group and "num-cpus" in group["rayStartParams"])
        assert group["template"]["spec"]["restartPolicy"] == "Never"
    redis = cluster["gcsFaultToleranceOptions"]["redisAddress"]
    service = of_kind(documents, "Service")["rekindle-redis"]
    assert redis == f"redis://rekindle-redis:{service['spec']['ports'][0]['port']}"


def test_every_node_has_the_clusters_environment(documents: list[Document]) -> None:
    environment = of_kind(documents, "ConfigMap")["rekindle-ray"]["data"]
    assert CLUSTER_ENVIRONMENT.items() <= environment.items()
    for group in (ray_cluster(documents)["headGroupSpec"], *ray_cluster(documents)["workerGroupSpecs"]):
        names = [each["configMapRef"]["name"] for each in group["template"]["spec"]["containers"][0]["envFrom"][:1]]
        assert names == ["rekindle-ray"]


def test_groups_differ_in_nothing_but_market_accelerator_and_place(documents: list[Document]) -> None:
    first, *others = [copy.deepcopy(group) for group in ray_cluster(documents)["workerGroupSpecs"]]
    for group in (first, *others):
        market = group["groupName"].removesuffix("-gpu")
        promised = group.get("labels", {})
        assert promised.get(MARKET_LABEL, "any") == market
        assert (ACCELERATOR_LABEL in promised) == group["groupName"].endswith("-gpu")
        for field in ("groupName", "priority", "maxReplicas", "labels"):
            group.pop(field, None)
        spec = group["template"]["spec"]
        for field in ("nodeSelector", "tolerations", "terminationGracePeriodSeconds"):
            spec.pop(field, None)
        (container,) = spec["containers"]
        del container["image"], container["lifecycle"]
        for amounts in container["resources"].values():
            amounts.pop("nvidia.com/gpu", None)
    assert all(group == first for group in others)


def launched_for(cluster: Document, place: Place) -> list[str]:
    """The groups that Ray's scheduler enlarges for a piece of work, by Ray's own reading of the RayCluster."""
    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    configs = {
        name: NodeTypeConfig(
            name=name,
            min_worker_nodes=each["min_workers"],
            max_worker_nodes=each["max_workers"],
            priority=each.get("priority", 0),
            resources=each["resources"],
            labels=each["labels"],
        )
        for name, each in types.items()
    }
    selector = [
        (label, LabelSelectorOperator.LABEL_OPERATOR_IN, list(values)) for label, values in place.accepted().items()
    ]
    work = ResourceRequestUtil.make({"CPU": 0.9}, label_selectors=[selector] if selector else None)
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=configs,
            max_num_nodes=8,
            resource_requests=[ResourceRequestByCount(request=work, count=1)],
        )
    )
    return [launch.instance_type for launch in reply.to_launch]


SPOT = Place(market="spot")


@pytest.mark.parametrize("accelerator", [None, "L4"])
@pytest.mark.parametrize(
    ("place", "group"),
    [
        (Place(), "any"),
        (SPOT, "spot"),
        (replace(SPOT, on_demand_counts=True), "on-demand"),
        (Place(market="on_demand"), "on-demand"),
    ],
)
def test_the_group_that_a_job_gets(
    overlay: str, documents: list[Document], place: Place, group: str, accelerator: str | None
) -> None:
    cluster = of_kind(documents, "RayCluster")["rekindle"]
    found = launched_for(cluster, replace(place, accelerator=accelerator))
    if accelerator is None:
        assert found == [group]
    else:
        assert found == ([] if overlay == "kind" else [f"{group}-gpu"])


def test_the_head_takes_no_work_and_workers_declare_the_same(overlay: str, documents: list[Document]) -> None:
    cluster = of_kind(documents, "RayCluster")["rekindle"]
    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    assert types.pop("headgroup")["resources"]["CPU"] == 0
    assert {each["resources"]["CPU"] for each in types.values()} == {2 if overlay == "kind" else 4}
    assert {each["resources"].get("GPU") for name, each in types.items() if name.endswith("-gpu")} <= {1}
    assert {each.get("idle_timeout_s") for each in types.values()} == {300}


def drain_flags(container: Document) -> argparse.Namespace:
    """What the hook asks for, by the command's own parser."""
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:3] == ["python", "-m", drain.__name__]
    return drain.build_parser().parse_args(command[3:])


def test_a_worker_that_is_to_stop_drains_its_node_in_time(overlay: str, documents: list[Document]) -> None:
    for group in ray_cluster(documents)["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        given = drain_flags(spec["containers"][0])
        grace_s, deadline_s = spec["terminationGracePeriodSeconds"], given.deadline_s
        assert given.absent_is_empty
        assert 5 <= grace_s - deadline_s <= 15
        if overlay == "gke" and not group["groupName"].startswith("on-demand"):
            assert deadline_s < 15
            assert grace_s <= 25
        else:
            assert grace_s < 120, "EC2 says it two minutes before"


def test_the_hooks_command_is_there() -> None:
    command = ["-m", "ray_cluster.spot.drain", "--absent-is-empty", "--node-id", "f" * 56, "--deadline-s", "95"]
    ended = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr


# --- machines ---------------------------------------------------------------------------------------------------------


def test_karpenters_pools_give_each_group_what_its_labels_promise() -> None:
    pools = of_kind(render(K8S / "eks/karpenter"), "NodePool")
    classes = of_kind(render(K8S / "eks/karpenter"), "EC2NodeClass")
    for name, template in pod_templates(render(K8S / "eks")):
        spec = template["spec"]
        pool = pools[spec["nodeSelector"]["karpenter.sh/nodepool"]]["spec"]["template"]["spec"]
        assert pool["nodeClassRef"]["name"] in classes
        offered = {each["key"]: each["values"] for each in pool["requirements"]}
        capacity = set(offered["karpenter.sh/capacity-type"])
        asked = spec["nodeSelector"].get("karpenter.sh/capacity-type")
        market = name.removesuffix("-gpu")
        assert (capacity if asked is None else capacity & {asked}) == MARKETS.get(market, {"on-demand"}), name
        tolerated = {each["key"] for each in spec.get("tolerations", [])}
        assert {each["key"] for each in pool.get("taints", [])} == tolerated, name
        if name.endswith("-gpu"):
            assert offered["karpenter.k8s.aws/instance-gpu-name"] == ["l4"]


def test_gkes_classes_give_each_group_what_its_labels_promise() -> None:
    classes = of_kind(render(K8S / "gke/compute-classes"), "ComputeClass")
    used = set[str]()
    for name, template in pod_templates(render(K8S / "gke")):
        chosen = template["spec"]["nodeSelector"]["cloud.google.com/compute-class"]
        used.add(chosen)
        priorities = classes[chosen]["spec"]["priorities"]
        markets = ["spot" if each["spot"] else "on-demand" for each in priorities]
        assert set(markets) == MARKETS.get(name.removesuffix("-gpu"), {"on-demand"}), name
        assert markets == sorted(markets, reverse=True), "spot first"
        assert all(("gpu" in each) == name.endswith("-gpu") for each in priorities)
        assert {each["gpu"]["type"] for each in priorities if "gpu" in each} <= {"nvidia-l4"}
        tolerated = {each["key"] for each in template["spec"].get("tolerations", [])}
        assert ("cloud.google.com/gke-spot" in tolerated) == ("spot" in markets), name
    assert used == classes.keys()


def test_who_pods_are_in_the_cloud() -> None:
    annotations = {"eks": "eks.amazonaws.com/role-arn", "gke": "iam.gke.io/gcp-service-account"}
    for overlay, annotation in annotations.items():
        for name, account in of_kind(render(K8S / overlay), "ServiceAccount").items():
            identity = account["metadata"]["annotations"][annotation]
            assert ("gateway" in identity) == (name == "rekindle-gateway")


def test_no_line_of_a_manifest_is_a_tab_or_ends_with_a_space() -> None:
    for path in K8S.rglob("*.yaml"):
        assert not re.search(r"\t| $", path.read_text(), re.MULTILINE), path


def test_the_readme_has_every_folder_and_the_releases_that_the_schemas_are_of() -> None:
    readme = (K8S / "README.md").read_text()
    applied = set(re.findall(r"kubectl apply -k deploy/k8s/([\w/-]+)", readme))
    assert applied == set(FOLDERS)
    for kind, name in (("raycluster", "KubeRay"), ("nodepool", "Karpenter"), ("podmonitor", "Prometheus operator")):
        (release,) = re.findall(r" v(\S+?),", SCHEMAS[kind]["$comment"])
        assert f"{name} {release}" in readme
