"""Runs a command that dies with its parent: `python -m services.local.tied PARENT_PID COMMAND…`.

The kernel sends SIGKILL to the command when the process that started it ends, however it ends (Linux only; elsewhere
the command runs as it is and the next start of the stack cleans up).
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ties this process to its parent, then becomes the command."""
    parent_pid, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have died before the line above; then nobody would send the signal.
        if os.getppid() != int(parent_pid):
            sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - becoming the command is the point


if __name__ == "__main__":
    main()
