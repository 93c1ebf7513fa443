"""What docs/operations.md and the monitoring say, against the code: commands, metrics, alerts, costs."""

import ast
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import ray
import typer
import yaml
from prometheus_client import REGISTRY
from typer.testing import CliRunner

from deploy.aws.__main__ import app as aws
from deploy.aws.instances import SHAPES
from deploy.aws.settings import AwsSettings
from ray_cluster.serve import measures as replica
from services.cli.cost import MEASURED, cost_of, markdown_table
from services.cli.main import app as rekindle
from services.contracts.backbones import BackboneName
from services.local import app as gateways
from services.runtime.database.migrate import MIGRATIONS
from services.runtime.prices import read_prices
from tests.contract.kustomize import render

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").rglob("*.md")])
RUNBOOK = (ROOT / "docs/operations.md").read_text()
MONITORING = render(ROOT / "deploy/k8s/monitoring")
RULES = [
    rule
    for each in MONITORING
    if each["kind"] == "PrometheusRule"
    for group in each["spec"]["groups"]
    for rule in group["rules"]
]
(DASHBOARD_MAP,) = [each for each in MONITORING if each["kind"] == "ConfigMap"]
DASHBOARDS = {name: json.loads(text) for name, text in DASHBOARD_MAP["data"].items()}
WIDTH = 24
"""Of Grafana's grid."""


# --- commands -----------------------------------------------------------------------------------------------------


def code_of(markdown: str) -> Iterator[str]:
    """Lines of code blocks, and code within lines."""
    for block in re.findall(r"^```\w*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL))


def commands_of(markdown: str, program: str) -> Iterator[list[str]]:
    """The arguments of each call of the program, as far as a shell's other syntax."""
    for line in code_of(markdown):
        for found in re.finditer(rf"(?:^|[\s(']){re.escape(program)} ([a-z][^|;&)#'`]*)", line):
            if not re.search(r"(?:-n|raycluster|namespace) $", line[: found.start() + 1]):
                yield shlex.split(found[1].replace("…", ""), comments=True)


def check(app: typer.Typer, arguments: list[str]) -> None:
    """Raises for a subcommand or an option that is not there."""
    command: Any = typer.main.get_command(app)
    context = typer.Context(command)
    while hasattr(command, "get_command"):
        if not arguments or arguments[0].startswith("-"):
            return
        name, *arguments = arguments
        chosen = command.get_command(context, name)
        assert chosen is not None, name
        command = chosen
    options = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
    for argument in arguments:
        if argument.startswith("--"):
            assert argument.partition("=")[0] in options, argument


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_the_documents_name_is_there(page: Path) -> None:
    for program, app in (("rekindle", rekindle), ("python -m deploy.aws", aws)):
        for arguments in commands_of(page.read_text(), program):
            check(app, arguments)


def test_a_wrong_command_would_be_found() -> None:
    assert len(list(commands_of(RUNBOOK, "rekindle"))) > 10
    for wrong in ("rekindle gc --dry", "rekindle keys rotate"):
        (arguments,) = commands_of(f"`{wrong}`", "rekindle")
        with pytest.raises(AssertionError):
            check(rekindle, arguments)


# --- metrics ------------------------------------------------------------------------------------------------------


def exported() -> set[str]:
    """The samples that gateways and replicas export; a replica's are Ray's, with its prefix."""
    assert gateways  # importing it declares the metrics of both gateways
    names: set[str] = set()
    for family in REGISTRY.collect():
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {f"{family.name}{end}" for end in ends}
    histograms = (replica.BATCH_IMAGES, replica.BATCH_DURATION)
    for name in replica.NAMES:
        ends = ("_bucket", "_sum", "_count") if name in histograms else ("",)
        names |= {f"ray_{name}{end}" for end in ends}
    return names


def of_ray() -> str:
    """The sources in which Ray declares what the dashboards use."""
    folder = Path(ray.__file__).parent
    modules = (*(folder / "serve/_private").glob("*.py"), folder / "dashboard/modules/reporter/reporter_agent.py")
    return "".join(each.read_text() for each in modules)


def expressions() -> list[str]:
    """Of alerts and dashboards; Grafana's variable is a time."""
    panels = [panel for each in DASHBOARDS.values() for panel in each["panels"]]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return [*(rule["expr"] for rule in RULES), *(query.replace("$__rate_interval", "5m") for query in queries)]


def metrics_in(expression: str) -> Iterable[str]:
    """Raises `ValueError` for what is no PromQL."""
    promql_parser.parse(expression)
    words = re.sub(r'"[^"]*"|\{[^}]*\}|\b(?:by|without)\s*\([^)]*\)', "", expression)
    return re.findall(r"\b(?:rekindle_|ray_|up\b)\w*", words)


def test_every_expression_is_promql_on_metrics_that_are_exported() -> None:
    ours, rays = exported(), of_ray()
    used = {name for expression in expressions() for name in metrics_in(expression)} - {"up"}
    assert len(used) > 20
    for name in used:
        if name.startswith(("rekindle_", "ray_rekindle_")):
            assert name in ours, name
        else:
            assert f'"{name.removeprefix("ray_")}"' in rays, name


def test_a_wrong_expression_would_be_found() -> None:
    with pytest.raises(ValueError, match="parenthesis"):
        list(metrics_in("sum by (le rate(rekindle_jobs[5m])"))


def test_every_metric_of_ours_is_described_and_no_other() -> None:
    described = set(re.findall(r"`((?:ray_)?rekindle_[a-z_]+)`", RUNBOOK + (ROOT / "docs/serving.md").read_text()))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported() if "rekindle_" in name}
    assert described - set(BackboneName) == families


# --- alerts and dashboards ----------------------------------------------------------------------------------------


def test_the_runbook_has_each_alert_in_the_rules_order() -> None:
    assert re.findall(r"^### (Rekindle\w+)$", RUNBOOK, re.MULTILINE) == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("info", "warning", "critical")


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_can_be_shown(name: str) -> None:
    board = DASHBOARDS[name]
    assert DASHBOARD_MAP["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert name == f"{board['uid']}.json"
    assert [each["name"] for each in board["templating"]["list"]] == ["datasource"]
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
    for one, two in pairwise(sorted((panel["gridPos"] for panel in panels), key=lambda at: (at["y"], at["x"]))):
        assert two["x"] >= one["x"] + one["w"] if two["y"] == one["y"] else two["y"] >= one["y"] + one["h"]
        assert one["x"] + one["w"] <= WIDTH


# --- costs --------------------------------------------------------------------------------------------------------


def test_the_table_of_costs_is_the_commands() -> None:
    shown = re.search(r"<!-- cost -->\n(.*)<!-- /cost -->", RUNBOOK, re.DOTALL)
    assert shown is not None
    printed = CliRunner().invoke(rekindle, ["cost", "--markdown"], prog_name="rekindle").output
    assert shown[1] == printed, "copy the output of `rekindle cost --markdown` into docs/operations.md"
    assert printed.strip() == markdown_table([cost_of(each) for each in read_prices().instances])


def test_costs_are_computed_from_what_the_readme_says_was_measured() -> None:
    readme = (ROOT / "README.md").read_text()
    compute_s = re.search(r"The feature pass of ([\d,]+) images .*?Of ([\d.]+) s of compute", readme, re.DOTALL)
    predictions = re.search(r"^\| Rekindle \|.* (\d+) \|$", readme, re.MULTILINE)
    assert compute_s is not None
    assert predictions is not None
    why = "the README was measured anew: change MEASURED in services/cli/cost.py, and the table in docs/operations.md"
    images, seconds = float(compute_s[1].replace(",", "")), float(compute_s[2])
    assert pytest.approx(images / seconds) == MEASURED.train_images_per_s, why
    assert float(predictions[1]) == MEASURED.predictions_per_s, why
    for per_s in (MEASURED.train_images_per_s, MEASURED.predictions_per_s):
        assert f" {per_s / MEASURED.cores:.0f} images a second for each core" in RUNBOOK


def test_a_cost_is_hours_times_price() -> None:
    price = read_prices().find("g4dn.xlarge")
    assert price is not None
    cost = cost_of(price)
    hours = 1_000_000 / (MEASURED.predictions_per_s * price.vcpus / MEASURED.cores) / 3600
    assert cost.predictions_on_demand == pytest.approx(hours * price.on_demand)


def test_the_price_list_has_every_machine_that_the_deployments_name() -> None:
    classes: list[Any] = list(yaml.safe_load_all((ROOT / "deploy/k8s/gke/compute-classes/classes.yaml").read_text()))
    named = {each["machineType"] for one in classes for each in one["spec"]["priorities"] if "machineType" in each}
    head = AwsSettings.model_fields["head_instance_type"].default
    prices = read_prices()
    assert {*SHAPES, head, *named} <= {each.instance_type for each in prices.instances}
    assert all(each.spot is None or each.spot < each.on_demand for each in prices.instances)
    for instance_type, shape in SHAPES.items():
        price = prices.find(instance_type)
        assert price is not None
        assert (price.vcpus, price.gpu) == (shape.cpus, shape.accelerator)


# --- upgrades -----------------------------------------------------------------------------------------------------


def test_migrations_since_the_first_only_add() -> None:
    """The runbook says so: a gateway of the release before works on beside the new one."""
    scripts = sorted((MIGRATIONS / "versions").glob("0*.py"))
    assert len(scripts) > 1
    harmless = {"op.add_column", "op.create_table", "op.create_index", "op.bulk_insert", "op.execute", "op.get_bind"}
    for script in scripts[1:]:
        calls = [each for each in ast.walk(ast.parse(script.read_text())) if isinstance(each, ast.Call)]
        for call in calls:
            name, arguments = ast.unparse(call.func), ast.unparse(call)
            assert name in harmless or not name.startswith("op."), f"{script.name}: {name}"
            assert name != "op.add_column" or "nullable=True" in arguments, script.name
            assert name != "op.execute" or re.match(r"op\.execute\(f?['\"]CREATE ", arguments), script.name
