"""A job as it happens: a progress bar and metrics on a terminal, lines elsewhere."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from services.cli.job_view import JobView
from services.contracts.jobs import EpochMetrics, JobEvent

Job_co = TypeVar("Job_co", covariant=True)

EPOCH_LINES = 10
"""Epochs that are printed where there is no terminal to draw a bar on."""


class Jobs(Protocol[Job_co]):
    """The client's calls on jobs of one kind."""

    def events(self, job_id: str) -> Iterable[JobEvent]: ...

    def get(self, job_id: str) -> Job_co: ...


def watch_job(jobs: Jobs[Job_co], job_id: str, console: Console) -> Job_co:
    """Shows the job until it has ended; returns it as it ended.

    Raises what `events` raises. Interrupting it leaves the job alone.
    """
    view = JobView()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[metrics]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(view.title, total=None, metrics="")
        shown = view.title
        for event in jobs.events(job_id):
            before = view.metrics
            for line in view.apply(event):
                console.print(f"  {line}", markup=False)
            is_new_epoch = view.metrics is not before and view.metrics is not None
            if is_new_epoch and not console.is_terminal:
                _print_epoch(console, view.metrics)
            if view.title != shown:  # a bar of its own for each stage: a total cannot be taken back
                bar.remove_task(task)
                task, shown = bar.add_task(view.title, total=None, metrics=""), view.title
            if view.progress is not None:
                bar.update(task, completed=view.progress.done, total=view.progress.total)
            if is_new_epoch:
                bar.update(task, metrics=shown_metrics(view.metrics))
    return jobs.get(job_id)


def shown_metrics(metrics: EpochMetrics | None) -> str:
    """The newest epoch in one line; empty before the first."""
    if metrics is None:
        return ""
    text = f"loss {metrics.train_loss:.3f}"
    if metrics.validation_accuracy is not None:
        text += f", validation accuracy {metrics.validation_accuracy:.1%}"
    return text


def _print_epoch(console: Console, metrics: EpochMetrics | None) -> None:
    if metrics is None:
        return
    every = max(1, metrics.epochs // EPOCH_LINES)
    if metrics.epoch % every == 0 or metrics.epoch == 1:
        console.print(f"  epoch {metrics.epoch} of {metrics.epochs}: {shown_metrics(metrics)}", markup=False)
