"""Stands in for `ssh` and `rsync`: machines on which every command works, and that tell what they were told.

`play(folder)` writes both programs into a folder for the front of PATH. Each call is a line of JSON in `calls.jsonl`;
Docker's answers are those of a machine on which nothing runs before `docker run` was called. rsync copies nothing: what
was to be copied is read when it is called, because Ray removes some of it afterwards.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

HOME = "/home/rekindle"


@dataclass(frozen=True, slots=True)
class Call:
    """Of one of the programs."""

    program: str
    host: str
    command: str
    """For ssh."""
    source: str = ""
    """For rsync."""
    target: str = ""
    text: str = ""
    """What rsync was given, where it is one file."""


@dataclass(frozen=True, slots=True)
class PlayedMachines:
    """What a test sees of them."""

    folder: Path

    def calls(self) -> list[Call]:
        """All until now, in order."""
        path = self.folder / "calls.jsonl"
        return [Call(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def play(folder: Path) -> PlayedMachines:
    """Makes the programs."""
    for name in ("ssh", "rsync"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {name} {folder} "$@"\n')
        program.chmod(0o755)
    return PlayedMachines(folder)


def _ssh(folder: Path, arguments: list[str]) -> None:
    host, command = next(each for each in arguments if "@" in each and "=" not in each), arguments[-1]
    runs = any("docker run" in call.command for call in PlayedMachines(folder).calls())
    answers = {
        ".State.Running": "true" if runs else "",
        ".Config.Env": json.dumps([f"HOME={HOME}"]),
        ".Config.Image": "played",
        ".Mounts": "[]",
        "printenv HOME": HOME,
        "command -v docker": "/usr/bin/docker",
        "/proc/meminfo": "MemAvailable: 8000000 kB",
        "rekindle keys create": "rk_played",
    }
    print(next((answer for part, answer in answers.items() if part in command), ""))
    _note(folder, Call("ssh", host, command))


def _rsync(folder: Path, arguments: list[str]) -> None:
    source, there = arguments[-2:]
    host, _, target = there.partition(":")
    path = Path(source)
    text = path.read_text() if path.is_file() else "".join(file.read_text() for file in sorted(path.iterdir()))
    _note(folder, Call("rsync", host, "", source, target, text))


def _note(folder: Path, call: Call) -> None:
    with (folder / "calls.jsonl").open("a") as log:
        fields = ("program", "host", "command", "source", "target", "text")
        log.write(json.dumps({name: getattr(call, name) for name in fields}) + "\n")


if __name__ == "__main__":
    {"ssh": _ssh, "rsync": _rsync}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3:])
