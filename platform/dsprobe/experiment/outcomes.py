"""What a guardrail setting did to each row: all that a search needs to know, in a few columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Text = npt.NDArray[np.str_]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOutcomes:
    """N finished rows; every array has length N. Row order is that of the plan, whatever computed it."""

    condition: Text
    """Id of the **unguarded** condition (`Condition.id`), the same under every guardrail."""
    prompts: Text
    """Prompt-set label."""
    attack: Text
    """Attack label."""
    prompt_index: I64
    """Index of the prompt within its set; rungs of growing size are prefixes of it."""
    prompt_id: Text
    sample: I64
    harmful: Bool
    """Whether the prompt is a harmful request."""
    verdicts: Mapping[str, F64]
    """Judge key → 1 or 0; NaN where the judge has no opinion (empty reply, not its kind of prompt)."""
    empty: Bool
    """Reply without text; never counted as safe."""
    log_perplexity: F64
    """Mean −log p per token, nats, smallest over the fluency models; NaN without one or for an empty reply."""
    num_steps: I64
    """Denoising steps, extra steps included."""
    passes: I64
    """Forward passes that a run from scratch takes."""
    passes_used: I64
    """Forward passes that were computed now; the rest came from logged trajectories."""
    positions: I64
    """Canvas positions of the row (padding not counted): passes × positions is the cost."""
    interventions: I64
    """Interventions on the row."""
    margin: F64
    """Smallest decision margin of the steps computed now; see `Policy.margin`."""

    def __len__(self) -> int:
        return len(self.prompt_id)

    def select(self, rows: Bool | I64) -> RowOutcomes:
        """Some of the rows."""
        return RowOutcomes(**{name: _map(value, lambda column: column[rows]) for name, value in self.columns().items()})

    def columns(self) -> dict[str, Any]:
        """Field name → array, `verdicts` a mapping of arrays."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def concatenate(cls, parts: Sequence[RowOutcomes]) -> RowOutcomes:
        """Rows of several parts, one after the other; all must have the same judges."""
        first = parts[0].columns()
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in first if name != "verdicts"}
        verdicts = {judge: np.concatenate([part.verdicts[judge] for part in parts]) for judge in parts[0].verdicts}
        return cls(**joined, verdicts=verdicts)


def _map(value: Any, function: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: function(column) for key, column in value.items()}
    return function(value)
