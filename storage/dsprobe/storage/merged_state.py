"""Statistics of many shards, merged while they were committed, and which shards they are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from dsprobe.experiment.evaluated import Condition
from dsprobe.storage.reducer import ReducerState


@dataclass(slots=True)
class MergedState:
    """One reducer state of many shards.

    A shard may be added once only, by whoever committed it.
    """

    state: ReducerState | None = None
    """`None` while nothing was added."""
    shards: dict[str, Condition] = field(default_factory=dict)
    """The shards that it covers: id → condition."""

    def add(self, shard_id: str, state: ReducerState) -> None:
        """Add a shard that was committed; one that is covered already is left out.

        Args:
            shard_id: The shard.
            state: Its statistics, of one condition; must not be used afterwards.
        """
        (condition,) = state.conditions
        self.absorb(MergedState(state, {shard_id: condition}))

    def absorb(self, other: MergedState) -> None:
        """Add all shards of another merged state that has none of these.

        Args:
            other: Must not be used afterwards: its parts may become this one's. One that covers a shard of this one is
                left out as a whole, which costs time later and never counts twice.
        """
        if other.state is None or self.shards.keys() & other.shards.keys():
            return
        if self.state is None:
            self.state = other.state
        else:
            self.state.merge(other.state)
        self.shards |= other.shards

    def of(self, condition: Condition, committed: Collection[str]) -> tuple[ReducerState | None, set[str]]:
        """What is known of a condition.

        Args:
            condition: The condition.
            committed: Ids of its committed shards.

        Returns:
            A state of the condition alone, and the shards that it covers; `None` and none where nothing is known, or
            where it covers a shard that is not committed any more.
        """
        covered = {shard for shard, of in self.shards.items() if of == condition}
        if self.state is None or not covered or not covered <= set(committed):
            return None, set()
        alone = ReducerState(self.state.threshold)
        alone.conditions[condition] = self.state.conditions[condition]
        copy = ReducerState(self.state.threshold)
        copy.merge(alone)
        return copy, covered
