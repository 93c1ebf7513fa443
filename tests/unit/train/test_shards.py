"""Shards are dealt so that each is computed once, and who computes them changes nothing."""

from hypothesis import given
from hypothesis import strategies as st

from ray_cluster.train.shards import deal


@given(count=st.integers(0, 200), workers=st.integers(1, 64))
def test_every_shard_is_dealt_once_in_order_and_evenly(count: int, workers: int) -> None:
    dealt = deal(count, workers)
    assert len(dealt) == workers
    assert [shard for shards in dealt for shard in shards] == list(range(count))
    sizes = [len(shards) for shards in dealt]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
