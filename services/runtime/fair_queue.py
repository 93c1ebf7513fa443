"""A bounded queue that is shared fairly by flows, whatever one of them sends.

Taken in turns: deficit round robin (Shreedhar and Varghese, 1996) with items of equal cost, so that a turn is one item
and nothing is carried over. Given up from the longest: longest queue drop (Suter, Lakshman, Stiliadis and Choudhury,
1998).
"""

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Flow = TypeVar("Flow", bound=Hashable)
Item = TypeVar("Item")


class FairQueue(Generic[Flow, Item]):
    """Items that wait, at most `capacity` of them.

    - Within a flow the order is that of arrival. Flows take turns: where F flows wait, a flow's n-th item is among the
      first n * F that are taken, however many the others have lined up.
    - Where it is full, the flow with the most items, counting the one that arrives, gives up its newest; of equals, the
      one that arrives. So while others want room no flow loses an item unless it has more than its equal share.
    """

    def __init__(self, capacity: int) -> None:
        """Raises `ValueError` for a capacity below 1."""
        if capacity < 1:
            raise ValueError(f"capacity {capacity} is below 1")
        self.capacity = capacity
        """May be changed at any time; what waits already stays, also where it is more."""
        self._flows: OrderedDict[Flow, deque[Item]] = OrderedDict()
        """Those that have items, the one whose turn it is first."""
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def waiting(self, flow: Flow) -> int:
        """How many items of the flow wait."""
        return len(self._flows.get(flow, ()))

    def has_room(self, flow: Flow, *, of_flow: int = 0, of_all: int = 0) -> bool:
        """Whether another item of the flow would be lined up, after so many that are still to come: of the flow, and of
        all flows."""
        if self._size + of_all < self.capacity:
            return True
        return bool(self._flows) and self._gives_way(self._longest(), flow, coming=of_flow)

    def put(self, flow: Flow, item: Item) -> Item | None:
        """Lines the item up. Returns the item that there is no room for, this one or another, or None."""
        given_up: Item | None = None
        if self._size >= self.capacity:
            longest = self._longest()
            if not self._gives_way(longest, flow):
                return item
            given_up = self._flows[longest].pop()  # it has at least one other
            self._size -= 1
        self._flows.setdefault(flow, deque()).append(item)
        self._size += 1
        return given_up

    def _longest(self) -> Flow:
        return max(self._flows, key=self.waiting)

    def _gives_way(self, longest: Flow, flow: Flow, *, coming: int = 0) -> bool:
        """Whether the longest flow has more than the other would have with what is coming and one item more."""
        return self.waiting(longest) > self.waiting(flow) + coming + 1

    def take(self) -> Item | None:
        """The next item, or None where nothing waits."""
        if not self._flows:
            return None
        flow, items = self._flows.popitem(last=False)
        item = items.popleft()
        self._size -= 1
        if items:
            self._flows[flow] = items  # the last whose turn comes
        return item

    def discard(self, flow: Flow, item: Item) -> None:
        """Takes the item out where it still waits."""
        items = self._flows.get(flow)
        if items is None or item not in items:
            return
        items.remove(item)
        self._size -= 1
        if not items:
            del self._flows[flow]
