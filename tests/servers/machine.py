"""A machine as one process: everything that it starts stays below it, orphans too, and goes with it.

`python -m tests.servers.machine` reads a JSON object a line (`command`, `env`, `log`), starts it, and answers with its
process id. When its input ends (whoever wanted the machine is gone) it kills all that is left. Linux only.
"""

import ctypes
import json
import os
import select
import sys

import psutil

PR_SET_CHILD_SUBREAPER = 36
REAP_EVERY_S = 0.5


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    requests = sys.stdin.buffer
    while True:
        if select.select([requests], [], [], REAP_EVERY_S)[0]:
            line = requests.readline()
            if not line:
                break
            print(_start(**json.loads(line)), flush=True)
        _reap()
    for process in psutil.Process().children(recursive=True):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _start(command: list[str], env: dict[str, str], log: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawnp(command[0], command, env, file_actions=files, setsid=True)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


if __name__ == "__main__":
    main()
