"""What is measured, and what it says."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import psutil

from services.client import Rekindle
from services.contracts.backbones import BackboneName
from services.contracts.models import TrunkManifest
from services.local.home import StackHome
from services.local.processes import stack_processes
from tests.benchmarks import images
from tests.benchmarks.rates import on_every_core
from tests.benchmarks.report import Figure, Finding, Table, Target
from tests.benchmarks.serve import limit, load, many, rivals
from tests.benchmarks.serve.load import Load, Loaded
from tests.benchmarks.train.memory import kind_of
from tests.benchmarks.train.product import Product
from tests.servers.local_stack import LocalStack, run_command, running_stack, wait_until_at_rest

CLIENTS = (1, 8, 32)
MOST_CLIENTS = max(CLIENTS)
OVERLOAD = 4.0
OVERLOAD_CLIENTS = 1024
COLD = 100
"""Heads whose first and second answer are compared."""
IMAGES = 64
TRAINED_ON = 100
REPLICA = "ServeReplica"
PRODUCT = "product"


@dataclass(frozen=True, slots=True)
class Setting:
    """What was asked for."""

    images: Path
    weights: Path
    backbone: BackboneName
    rivals: tuple[str, ...]
    rounds: int
    seconds: float
    """Of each load."""
    counts: tuple[int, ...]
    """Of models that are served, in ascending order."""


@dataclass(slots=True)
class Measured:
    """Everything, in the order in which it was measured."""

    limit: list[float] = field(default_factory=list[float])
    loads: dict[tuple[str, int], list[Loaded]] = field(default_factory=dict[tuple[str, int], list[Loaded]])
    """By server and number of clients."""
    counts: dict[tuple[int, bool], list[Loaded]] = field(default_factory=dict[tuple[int, bool], list[Loaded]])
    """By number of models, and whether the first ones were asked more often."""
    replica_bytes: dict[int, int] = field(default_factory=dict[int, int])
    """The replica's memory by number of warm heads."""
    cold_ms: list[float] = field(default_factory=list[float])
    """What a head's first answer took longer than its second."""
    publish_to_servable_ms: float = 0.0
    overload: Loaded | None = None
    overload_bytes: tuple[int, int] = (0, 0)
    """The memory of gateway, proxy and replica before and after."""

    def per_s(self, server: str, clients: int) -> float | None:
        loads = self.loads.get((server, clients))
        return median(each.per_s for each in loads) if loads else None


def measure(setting: Setting, folder: Path) -> dict[str, Finding]:
    """Runs everything below an empty folder."""
    home, measured = folder / "home", Measured()
    originals = images.read_originals(setting.images)
    trained_on = images.write(images.pick(originals, TRAINED_ON, made=True), folder / "images", 2)
    files = sorted(path for path in trained_on.folder.rglob("*") if path.is_file())[:IMAGES]
    with running_stack(home) as stack, stack.client() as client:
        product = Product(client, home, setting.backbone, setting.weights)
        # The first starts Serve, and the trunk's replica.
        runs = [product.train(trained_on, number) for number in range(2)]
        measured.publish_to_servable_ms = 1000 * (runs[-1].ended_s + runs[-1].answered_s - runs[-1].wall_s)
        say("two models are trained")
    trunk_json = next(path.read_text() for path in (home / "bucket").glob("trunks/*/trunk.json"))
    trunk = TrunkManifest.model_validate_json(trunk_json)
    many.publish_many(home / "bucket", trunk, max(setting.counts))
    run_command("restore", "--yes", environment={"REKINDLE_HOME": str(home)})
    say(f"{max(setting.counts)} models are published")
    with running_stack(home) as stack, stack.client() as client:
        _until_served(client, files[0])
        wait_until_at_rest(home)
        asked = Load(stack.url, [_path(next(many.names(1)))], [str(file) for file in files], 1, setting.seconds)
        for number in range(setting.rounds):
            measured.limit.append(on_every_core(limit.predict_rate, home / "bucket", trunk_json, files))
            _measure_clients(measured, PRODUCT, asked)
            for name in setting.rivals:
                log = folder / f"{name}.log"
                with rivals.running(name, setting.backbone, setting.weights, log, files[0]) as rival:
                    theirs = replace(asked, url=rival.url, paths=["/predict"], form_field=rival.form_field)
                    _measure_clients(measured, name, theirs)
                say(f"round {number + 1}: {name}")
        _measure_counts(measured, setting, stack, asked)
        _measure_overload(measured, stack, asked)
    return {"servers": _servers(measured, setting), "models": _models(measured, setting, trunk)}


def say(line: str) -> None:
    """Progress, with the time since the first call."""
    print(f"{time.monotonic() - _began_s:.0f} s: {line}", flush=True)


_began_s = time.monotonic()


def _path(model_name: str) -> str:
    return f"/v1/models/{model_name}/predict"


def _until_served(client: Rekindle, image: Path) -> None:
    """A prediction is held until a replica is there."""
    client.predict(next(many.names(1)), [image])


def _measure_clients(measured: Measured, server: str, asked: Load) -> None:
    for clients in CLIENTS:
        measured.loads.setdefault((server, clients), []).append(load.run(replace(asked, clients=clients)))


def _measure_counts(measured: Measured, setting: Setting, stack: LocalStack, asked: Load) -> None:
    """Each number of models with its heads warm, in turn: evenly, and with a few that are asked for most."""
    asked = replace(asked, clients=MOST_CLIENTS)
    warm = _measure_cold(measured, setting, asked)
    paths = {count: [_path(name) for name in many.names(count)] for count in setting.counts}
    for count in setting.counts:
        names = list(many.names(count))
        load.run(replace(asked, paths=[_path(name) for name in names if name not in warm], once=True))
        warm.update(names)
        measured.replica_bytes[count] = _memory(stack, {REPLICA})
    say(f"{len(warm)} heads are loaded")
    for _ in range(setting.rounds):
        for zipf in (False, True):
            for count in setting.counts:
                loaded = load.run(replace(asked, paths=paths[count], zipf=zipf))
                measured.counts.setdefault((count, zipf), []).append(loaded)
    say(f"{', '.join(map(str, setting.counts))} models are measured")


def _measure_cold(measured: Measured, setting: Setting, asked: Load) -> set[str]:
    """Asks some heads for the first and the second time; their names."""
    names = list(many.names(max(setting.counts)))[-COLD:]
    for name in names:
        one = replace(asked, paths=[_path(name)], clients=1, once=True)
        first, second = load.run(one), load.run(one)
        measured.cold_ms.append(first.latencies_ms["max"] - second.latencies_ms["max"])
    return set(names)


def _measure_overload(measured: Measured, stack: LocalStack, asked: Load) -> None:
    rate = OVERLOAD * (measured.per_s(PRODUCT, MOST_CLIENTS) or 0)
    before = _memory(stack, None)
    measured.overload = load.run(replace(asked, clients=OVERLOAD_CLIENTS, rate=rate))
    measured.overload_bytes = before, _memory(stack, None)


def _memory(stack: LocalStack, kinds: set[str] | None) -> int:
    """Resident bytes of the stack's processes of these kinds, or of all."""
    record = StackHome(stack.home).read_record()
    assert record is not None
    total = 0
    for process in stack_processes(record):
        try:
            if kinds is None or kind_of(process.cmdline()) in kinds:
                total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _servers(measured: Measured, setting: Setting) -> Finding:
    limit_per_s = median(measured.limit)
    ours = measured.per_s(PRODUCT, MOST_CLIENTS)
    figures = [
        Figure("ips_limit", limit_per_s, "images a second: decoding, trunk and head alone, on every core"),
        Figure("ips_product", ours, f"images a second over HTTP, {MOST_CLIENTS} clients"),
        Figure("share_of_limit", _ratio(ours, limit_per_s), "ours / the limit", Target(at_least=0.75)),
    ]
    targets = {"fastapi_keras": Target(at_least=4)}
    figures += [
        Figure(f"vs_{name}", _ratio(ours, measured.per_s(name, MOST_CLIENTS)), f"ours / {name}'s", targets.get(name))
        for name in setting.rivals
    ]
    rows = [
        (name, clients, measured.per_s(name, clients), *_latencies(measured.loads[name, clients]), _refused(loads))
        for (name, clients), loads in measured.loads.items()
    ]
    columns = ("server", "clients", "images per second", "p50 ms", "p99 ms", "not answered")
    return Finding(figures, [Table("Images over HTTP", columns, [tuple(map(_cell, row)) for row in rows])])


def _models(measured: Measured, setting: Setting, trunk: TrunkManifest) -> Finding:
    per_s = {key: median(each.per_s for each in loads) for key, loads in measured.counts.items()}
    fewest, most = setting.counts[0], setting.counts[-1]
    head_bytes = many.head_bytes(trunk)
    grown = (measured.replica_bytes[most] - measured.replica_bytes[fewest]) / max(1, most - fewest - COLD)
    overload = measured.overload
    assert overload is not None
    usual_p99 = median(each.latencies_ms["p99"] for each in measured.loads[PRODUCT, MOST_CLIENTS])
    others = sum(n for status, n in overload.statuses.items() if status not in {"200", "503"})
    cold = sorted(measured.cold_ms)
    figures = [
        *(
            Figure(f"ips_models_{count}", per_s[count, False], "images a second, asked evenly")
            for count in setting.counts
        ),
        Figure(
            f"ratio_{most}_vs_{fewest}",
            per_s[most, False] / per_s[fewest, False],
            f"{most} models / {fewest}",
            Target(at_least=0.95),
        ),
        Figure("bytes_per_model", grown, "the replica's memory for each head more"),
        Figure("bytes_per_model_vs_head", grown / head_bytes, "the same / the head's weights", Target(at_most=3)),
        Figure("cold_tail_ms", cold[int(0.99 * len(cold))], "p99 of first answer less second", Target(at_most=50)),
        Figure(
            "publish_to_servable_ms",
            measured.publish_to_servable_ms,
            "from the end of a second job's last stage until its version answered",
            Target(at_most=1000),
        ),
        Figure(
            "errors_under_overload",
            others,
            f"answers but 200 and 503 at {OVERLOAD:g} times the rate",
            Target(at_most=0),
        ),
        Figure(
            "overload_p99_ratio",
            overload.latencies_ms["p99"] / usual_p99,
            f"p99 of what was answered / p99 of {MOST_CLIENTS} clients",
            Target(at_most=2),
        ),
        Figure("overload_memory_ratio", _ratio(*reversed(measured.overload_bytes)), "all processes, after / before"),
    ]
    rows = [
        (count, "a few most" if zipf else "evenly", per_s[count, zipf], *_latencies(loads), _refused(loads))
        for (count, zipf), loads in measured.counts.items()
    ]
    columns = ("models", "asked", "images per second", "p50 ms", "p99 ms", "not answered")
    tables = [Table("Models on one trunk", columns, [tuple(map(_cell, row)) for row in rows])]
    notes = [
        f"Overload: {overload.statuses} and {overload.unsent} that found no connection, in {overload.seconds:g} s.",
        f"The replica's memory by warm heads: {measured.replica_bytes}.",
    ]
    return Finding(figures, tables, notes, {"overload": overload.statuses, "cold_ms": cold})


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours and theirs else None


def _latencies(loads: Sequence[Loaded]) -> tuple[float, float]:
    return tuple(median(each.latencies_ms[name] for each in loads) for name in ("p50", "p99"))  # type: ignore[return-value]


def _refused(loads: Sequence[Loaded]) -> int:
    return sum(n for each in loads for status, n in each.statuses.items() if status != "200")


def _cell(value: object) -> str | float | None:
    return value if isinstance(value, str | float) or value is None else str(value)
