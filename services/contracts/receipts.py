"""What a job cost, and what it did not have to do again."""

from datetime import date, datetime

from pydantic import Field

from services.contracts.base import Contract
from services.contracts.ids import JobId
from services.contracts.jobs import Machine


class MachineCost(Contract):
    """A machine's time with the job in one attempt, from its first to its last piece of work."""

    machine: Machine
    attempt: int
    began_at: datetime
    ended_at: datetime
    hours: float
    cost: float | None = Field(description="All of the machine for that time. Null: not known, see `unknown`.")
    on_demand_cost: float | None = Field(description="What an on-demand machine of the type would have cost.")
    unknown: str | None = Field(description="Why a cost is not known.")


class SavedWork(Contract):
    """What was there already when the job began."""

    files: int | None = Field(description="Of the dataset. Null before preflight has listed them.")
    files_known: int | None = Field(description="Of these, read by a preflight before this job, and not again.")
    images_computed: int | None = Field(
        description="Images that the job ran through trunks, for each trunk once. Null before the stage `features`."
    )
    images_cached: int | None = Field(
        description="Files whose features needed no computing: cached, or set aside. Null where the job has two trunks."
    )
    core_s_saved: float | None = Field(
        description="Seconds of a core that this would have taken, by what the rest took in this job. Null where that "
        "cannot be told, because all of it was there."
    )


class Receipt(Contract):
    """Computed anew whenever it is asked for, from what the job's attempts told and a price list.

    It is no bill: machines cost from their start to their end, also while they do nothing or work for others at the
    same time, and the head, the gateways, the bucket and the database cost as well. What is not known is null and has
    a reason, and never a guess.
    """

    job_id: JobId
    final: bool = Field(description="The job has ended.")
    currency: str
    prices_as_of: date
    prices_source: str
    machines: list[MachineCost]
    cost: float | None = Field(description="Of all machines; null where that of any is not known, see `missing`.")
    known_cost: float = Field(description="Of the machines whose cost is known.")
    on_demand_cost: float | None = Field(description="The same on on-demand machines; null where any is not known.")
    missing: list[str] = Field(description="What `cost` would need, and what the machines do not cover.")
    attempts: int
    recoveries: int = Field(description="How often training went on in another process.")
    epochs_redone: int = Field(
        description="Epochs that were trained again after these; at least, as not every short epoch is reported."
    )
    saved: SavedWork
