"""The order of pools, and how long one that had nothing is left alone."""

import pytest

from ray_cluster.autoscaling.pools import CoolOff, Market, Offer, Pool, describe, in_order, read_offers

SPOT_A = Pool(Market.SPOT, "g5.xlarge", "subnet-a")
SPOT_B = Pool(Market.SPOT, "g5.xlarge", "subnet-b")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_all_of_a_zone_before_the_next_and_all_of_spot_before_on_demand() -> None:
    offers = [
        Offer(Market.ON_DEMAND, "g4dn.xlarge"),
        Offer(Market.SPOT, "g4dn.xlarge"),
        Offer(Market.SPOT, "g5.xlarge"),
    ]
    assert [str(pool) for pool in in_order(offers, ["subnet-b", "subnet-a"])] == [
        "spot g4dn.xlarge in subnet-b",
        "spot g5.xlarge in subnet-b",
        "spot g4dn.xlarge in subnet-a",
        "spot g5.xlarge in subnet-a",
        "on-demand g4dn.xlarge in subnet-b",
        "on-demand g4dn.xlarge in subnet-a",
    ]


def test_offers_are_read_from_the_clusters_yaml() -> None:
    listed = [{"Market": "spot", "InstanceType": "g5.xlarge"}, {"Market": "on-demand", "InstanceType": "g5.xlarge"}]
    assert read_offers(listed) == [Offer(Market.SPOT, "g5.xlarge"), Offer(Market.ON_DEMAND, "g5.xlarge")]


@pytest.mark.parametrize("listed", [[], [{"InstanceType": "g5.xlarge"}], [{"Market": "ondemand", "InstanceType": "x"}]])
def test_offers_that_say_nothing_are_refused(listed: list[dict[str, str]]) -> None:
    with pytest.raises(ValueError, match=r"offer|Market"):
        read_offers(listed)


def test_a_pool_is_left_alone_for_the_cool_off_and_no_longer() -> None:
    clock = Clock()
    cool_off = CoolOff(180, clock)
    cool_off.close(SPOT_A, "InsufficientInstanceCapacity")
    clock.now = 179.9
    assert cool_off.why_closed(SPOT_A) == "InsufficientInstanceCapacity"
    assert cool_off.why_closed(SPOT_B) is None
    clock.now = 180.0
    assert cool_off.why_closed(SPOT_A) is None


def test_a_pool_that_still_has_nothing_is_left_alone_again() -> None:
    clock = Clock()
    cool_off = CoolOff(180, clock)
    cool_off.close(SPOT_A, "InsufficientInstanceCapacity")
    clock.now = 200.0
    cool_off.close(SPOT_A, "SpotMaxPriceTooLow")
    clock.now = 379.0
    assert cool_off.why_closed(SPOT_A) == "SpotMaxPriceTooLow"


def test_when_the_first_of_several_may_be_asked() -> None:
    clock = Clock()
    cool_off = CoolOff(180, clock)
    assert cool_off.opens_in_s([SPOT_A, SPOT_B]) == 0.0
    cool_off.close(SPOT_A, "x")
    assert cool_off.opens_in_s([SPOT_A, SPOT_B]) == 0.0
    clock.now = 100.0
    cool_off.close(SPOT_B, "x")
    assert cool_off.opens_in_s([SPOT_A, SPOT_B]) == 80.0
    assert cool_off.opens_in_s([]) == 0.0


def test_reasons_are_told_once_each() -> None:
    assert describe({SPOT_A: "X", Pool(Market.SPOT, "g6.xlarge", "subnet-a"): "Y", SPOT_B: "X"}) == (
        "X: spot g5.xlarge in subnet-a, spot g5.xlarge in subnet-b; Y: spot g6.xlarge in subnet-a"
    )
