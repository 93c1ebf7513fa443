"""`make chaos`: real jobs on a real deployment while its parts are killed, and a report of what that cost.

Exit status 0 only if every job finished with the weights of its undisturbed run, nothing was done twice, and no more
was redone than a checkpoint interval allows. How long a recovery takes is reported, and fails nothing.
"""

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.runner.campaign import Campaign, Options, log_effects
from tests.chaos.runner.deployment import deployment
from tests.chaos.runner.report import Results, as_json, broken_promises, table
from tests.chaos.runner.schedule import Target, plan

OUTPUT = Path("build/chaos/report.json")


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command line."""

    kills: int
    seed: int
    targets: tuple[Target, ...]
    options: Options
    output: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs it; returns the exit status."""
    given = parse(arguments)
    logging.basicConfig(level=logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # everything comes down as orderly as after Ctrl-C
    results = run(given, lambda line: print(line, flush=True))
    report = as_json(results)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(report, indent=2) + "\n")
    print("\n".join(log_effects(results)))
    print(f"\n{table(report)}\n")
    broken = broken_promises(results)
    for line in broken:
        print(f"BROKEN: {line}")
    print(f"the report is in {given.output}")
    return 1 if broken else 0


def run(given: Arguments, say: Callable[[str], None]) -> Results:
    """Starts a deployment, carries the plan out, and stops it all."""
    strikes = plan(given.seed, given.kills, given.targets)
    began_s = time.monotonic()
    with deployment(max_running_jobs=given.options.at_a_time) as running:
        say(f"deployed in {time.monotonic() - began_s:.0f} s, in {running.folder}")
        results = Campaign(running, given.options, say, given.seed).run(strikes)
    say(f"{time.monotonic() - began_s:.0f} s in all")
    return results


def parse(arguments: Sequence[str] | None) -> Arguments:
    """Options from the command line. Empty ones, as make passes them, count as not given."""
    default = Options()
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--kills", default="", help="how many faults (default 12)")
    parser.add_argument("--seed", default="", help="of the schedule (default 1)")
    parser.add_argument("--targets", default="", help=f"separated by commas or spaces; default: {', '.join(Target)}")
    parser.add_argument("--jobs", type=int, default=default.at_a_time, help="jobs side by side")
    parser.add_argument("--works", type=int, default=default.works, help="distinct jobs, each run undisturbed first")
    parser.add_argument("--outage", type=float, default=default.outage_s, help="seconds without the S3 server")
    parser.add_argument("--notice", type=float, default=default.notice_s, help="seconds between notice and kill")
    parser.add_argument("--interval", type=float, default=default.checkpoint_interval_s, help="between checkpoints")
    parser.add_argument("--stage-wait", type=float, default=default.stage_within_s, help="seconds for a job's stage")
    parser.add_argument("--calm", type=float, default=default.calm_s, help="seconds of peace after each fault")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args(arguments)
    names = given.targets.replace(",", " ").split()
    try:
        targets = tuple(Target(name) for name in names) or tuple(Target)
    except ValueError as error:
        parser.error(f"{error}: use {', '.join(Target)}")
    options = Options(
        works=given.works,
        at_a_time=given.jobs,
        checkpoint_interval_s=given.interval,
        stage_within_s=given.stage_wait,
        outage_s=given.outage,
        notice_s=given.notice,
        calm_s=given.calm,
    )
    return Arguments(int(given.kills or 12), int(given.seed or 1), targets, options, given.output)


if __name__ == "__main__":
    sys.exit(main())
