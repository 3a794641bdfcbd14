"""Which shard a replica gets next: one whose model it has loaded, as long as there is one. No Ray here."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from dsprobe.experiment.plan import Shard


class Locality:
    """Remembers which replica has which models, by the label of the model.

    A replica whose models have no shards left helps with another model: nothing waits while a replica is idle. It does
    not reserve such a shard ahead, because a replica that has the model may become free first.
    """

    def __init__(self) -> None:
        self._loaded: dict[int, list[str]] = {}
        """Labels by replica, the last used first."""

    def take(self, replica: int, pending: deque[Shard], *, ahead: bool) -> Shard | None:
        """Take a replica's next shard out of the queue.

        Args:
            replica: Its number.
            pending: The queue, not empty; shards of one model keep their order.
            ahead: The replica has work, and this is for later.

        Returns:
            The shard; `None` where it has to load another model for it and is asked ahead.
        """
        wanted = self._of_loaded(replica, pending)
        if wanted is None:
            if ahead and self._loaded.get(replica):
                return None
            wanted = self._most_in_need(pending)
        place = next(index for index, shard in enumerate(pending) if shard.condition.model == wanted)
        shard = pending[place]
        del pending[place]
        return shard

    def has(self, replica: int, models: Sequence[str]) -> None:
        """Note that a replica has these models loaded, the last used first."""
        known = self._loaded.get(replica, [])
        self._loaded[replica] = [*models, *(model for model in known if model not in models)]

    def forget(self, replica: int) -> None:
        """Note that a replica is gone."""
        self._loaded.pop(replica, None)

    def _of_loaded(self, replica: int, pending: deque[Shard]) -> str | None:
        loaded = self._loaded.get(replica, [])
        if not loaded:
            return None
        waiting: set[str] = set()
        for shard in pending:
            if shard.condition.model == loaded[0]:
                return loaded[0]
            waiting.add(shard.condition.model)
        return next((model for model in loaded if model in waiting), None)

    def _most_in_need(self, pending: deque[Shard]) -> str:
        """The model with most rows left for each replica that would then work on it: shares in proportion."""
        rows: Counter[str] = Counter()
        for shard in pending:
            rows[shard.condition.model] += len(shard.rows)
        working = Counter(models[0] for models in self._loaded.values() if models)
        return max(rows, key=lambda model: rows[model] / (1 + working[model]))
