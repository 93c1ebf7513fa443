"""Which Serve applications there should be, and when Serve must be told."""

from pydantic import JsonValue

from services.contracts.ids import TrunkId
from services.training.ray_api import ServeApplication
from services.training.reconciler.serve_applications import ServeTarget, desired_config, differs

TARGET = ServeTarget(bucket_uri="s3://bucket/rekindle", http_host="127.0.0.1", http_port=8000)
A, B = TrunkId("a" * 64), TrunkId("b" * 64)


def observed(config: dict[str, JsonValue], status: str = "RUNNING") -> dict[str, ServeApplication]:
    applications = config["applications"]
    assert isinstance(applications, list)
    # Ray's schema adds fields of its own to what it was sent.
    return {
        str(each["name"]): ServeApplication(status, "", {**each, "runtime_env": {}})
        for each in applications
        if isinstance(each, dict)
    }


def test_each_trunk_has_one_application_with_its_own_route() -> None:
    config = desired_config([B, A, B], TARGET)
    applications = config["applications"]
    assert isinstance(applications, list)
    assert [(each["name"], each["route_prefix"]) for each in applications] == [
        ("trunk-" + "a" * 16, "/trunks/" + "a" * 64),
        ("trunk-" + "b" * 16, "/trunks/" + "b" * 64),
    ]
    assert applications[0]["args"]["bucket_uri"] == "s3://bucket/rekindle"
    assert config["http_options"] == {"host": "127.0.0.1", "port": 8000}


def test_what_runs_already_is_not_sent_again() -> None:
    config = desired_config([A, B], TARGET)
    assert not differs(config, observed(config))


def test_a_new_trunk_is_sent() -> None:
    assert differs(desired_config([A, B], TARGET), observed(desired_config([A], TARGET)))


def test_a_trunk_that_no_version_needs_is_taken_away() -> None:
    assert differs(desired_config([A], TARGET), observed(desired_config([A, B], TARGET)))


def test_an_application_that_is_going_is_not_waited_for() -> None:
    going = observed(desired_config([B], TARGET), "DELETING")
    assert not differs(desired_config([A], TARGET), observed(desired_config([A], TARGET)) | going)


def test_everything_is_sent_after_the_cluster_was_restarted() -> None:
    assert differs(desired_config([A], TARGET), {})


def test_another_bucket_is_sent() -> None:
    other = ServeTarget(bucket_uri="s3://other", http_host="127.0.0.1", http_port=8000)
    assert differs(desired_config([A], other), observed(desired_config([A], TARGET)))


def test_an_application_that_somebody_deployed_by_hand_is_replaced() -> None:
    config = desired_config([A], TARGET)
    by_hand = {name: ServeApplication("RUNNING", "", None) for name in observed(config)}
    assert differs(config, by_hand)
