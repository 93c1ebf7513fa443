"""What the idle stack costs, after it has worked: proportional set sizes, so that shared pages count once."""

import os
import time
from pathlib import Path

import psutil
import pytest

from services.local.home import StackHome, StackRecord
from services.local.processes import stack_processes
from tests.servers.local_stack import LocalStack, wait_until_at_rest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(200)]

MIB = 1024 * 1024
STACK_MIB = 2500
GATEWAY_MIB = 200
SETTLES_WITHIN_S = 60
"""Processes of a job that has ended go away after a few seconds."""


def pss_mib(process: psutil.Process) -> float:
    """0 for a process that has just ended."""
    try:
        return process.memory_full_info().pss / MIB
    except psutil.NoSuchProcess:
        return 0.0


def by_process(record: StackRecord) -> dict[int, float]:
    processes = [psutil.Process(record.pid), *stack_processes(record)]
    return {process.pid: pss_mib(process) for process in processes}


@pytest.fixture
def record(stack: LocalStack, data_dir: Path) -> StackRecord:
    """Of a stack that serves a model and has nothing to do."""
    record = StackHome(stack.home).read_record()
    assert record is not None
    stack.wait_for_model("base")
    with stack.client() as client:
        client.predict("base", data_dir / "datasets" / "hemlock_cherry" / "test" / "hemlock" / "test_image.jpg")
        assert all(job.state.is_terminal for job in client.training_jobs.list())
    wait_until_at_rest(stack.home)
    return record


def test_the_idle_stack_fits_a_small_machine(record: StackRecord) -> None:
    deadline_s = time.monotonic() + SETTLES_WITHIN_S
    while (total := sum(by_process(record).values())) > STACK_MIB and time.monotonic() < deadline_s:
        time.sleep(1)
    print(f"idle stack: {total:.0f} MiB")
    assert total <= STACK_MIB, by_process(record)


def test_a_gateway_is_small(record: StackRecord) -> None:
    (gateway,) = [
        process
        for process in stack_processes(record)
        if "services.local.app" in process.cmdline() and os.getsid(process.pid) == process.pid
    ]
    print(f"gateway: {pss_mib(gateway):.0f} MiB")
    assert pss_mib(gateway) <= GATEWAY_MIB
