"""What `rekindle receipt` tells a person."""

from datetime import date

from services.cli.receipt import lines
from services.contracts.ids import JobId
from services.contracts.receipts import Receipt, SavedWork

RECEIPT = Receipt(
    job_id=JobId("job_1"),
    final=True,
    currency="USD",
    prices_as_of=date(2026, 11, 1),
    prices_source="Made up.",
    machines=[],
    cost=1.25,
    known_cost=1.25,
    on_demand_cost=3.5,
    missing=[],
    attempts=2,
    recoveries=1,
    epochs_redone=4,
    saved=SavedWork(files=100, files_known=60, images_computed=50, images_cached=50, core_s_saved=12.34),
)


def test_all_of_it_in_sentences() -> None:
    assert lines(RECEIPT) == [
        "Cost: 1.2500 USD, on demand 3.5000.",
        "Attempts: 2; recoveries: 1, epochs done again: 4.",
        "60 of 100 files were read before, 50 needed no trunk, that spared about 12.3 s of a core.",
        "Prices of 2026-11-01. Made up.",
    ]


def test_what_is_not_known_is_said() -> None:
    nothing = SavedWork(files=None, files_known=None, images_computed=None, images_cached=None, core_s_saved=None)
    update = {"final": False, "cost": None, "on_demand_cost": None, "missing": ["no price"], "saved": nothing}
    assert lines(RECEIPT.model_copy(update=update)) == [
        "Cost so far: ? USD, on demand ?. Known: 1.2500.",
        "Not known: no price.",
        "Attempts: 2; recoveries: 1, epochs done again: 4.",
        "Prices of 2026-11-01. Made up.",
    ]
