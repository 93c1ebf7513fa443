"""`rekindle jobs …`."""

from itertools import islice
from typing import Annotated

import typer

from services.cli.session import AsJson, client_of, print_json, print_table, shown_share, stdout
from services.cli.summary import print_job_summary
from services.cli.train import follow, published_version
from services.contracts.jobs import JobState, TrainingJob

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Look at training jobs, follow and cancel them.")
JobArgument = Annotated[str, typer.Argument(metavar="JOB_ID")]


@app.command("list")
def list_jobs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs to list.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Jobs, newest first."""
    jobs = list(islice(client_of(context).training_jobs.list(), limit))
    if as_json:
        print_json(jobs)
        return
    rows = (
        (job.id, job.state, job.model_name, _result(job), f"{job.created_at:%Y-%m-%d %H:%M}", job.reason)
        for job in jobs
    )
    print_table(
        ("Job", "State", "Model", "Result", "Created", ""), rows, empty="no jobs yet: start one with `rekindle train`"
    )


def _result(job: TrainingJob) -> str:
    if job.result is None:
        return "-"
    return f"v{job.result.version}, {shown_share(job.result.accuracy)}"


@app.command()
def show(context: typer.Context, job_id: JobArgument, as_json: AsJson = False) -> None:
    """One job: state, stages, and the result or the failure."""
    client = client_of(context)
    job = client.training_jobs.get(job_id)
    if as_json:
        print_json(job)
        return
    console = stdout()
    console.print(f"{job.id}: {job.state}. {job.reason}", markup=False)
    print_job_summary(console, job, published_version(client, job))


@app.command()
def events(
    context: typer.Context,
    job_id: JobArgument,
    after: Annotated[int, typer.Option(min=0, help="Only events with a greater number (with --json).")] = 0,
    as_json: AsJson = False,
) -> None:
    """Follows a job until it ends. With --json: its events, one JSON line each."""
    client = client_of(context)
    if as_json:
        for event in client.training_jobs.events(job_id, after=after):
            typer.echo(event.model_dump_json())
        return
    job = follow(client, client.training_jobs.get(job_id), as_json=False)
    if job.state is JobState.FAILED:
        raise typer.Exit(1)


@app.command()
def logs(
    context: typer.Context,
    job_id: JobArgument,
    attempt: Annotated[int | None, typer.Option(min=1, help="(default: the newest)")] = None,
) -> None:
    """What an attempt has printed."""
    typer.echo(client_of(context).training_jobs.logs(job_id, attempt=attempt), nl=False)


@app.command()
def cancel(context: typer.Context, job_id: JobArgument, as_json: AsJson = False) -> None:
    """Stops a job. It is cancelled within seconds."""
    job = client_of(context).training_jobs.cancel(job_id)
    if as_json:
        print_json(job)
    else:
        stdout().print(f"{job.id}: {job.state}", markup=False)
