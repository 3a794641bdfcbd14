"""Column layouts: what the columns of the published benchmarks mean, whatever the file's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from dsprobe.config import PromptsConfig
from dsprobe.errors import ConfigError, brief, unknown_name

PLAIN: Final = "plain"
"""Name of the layout of one's own lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which column of a file means what. Absent optional columns read as empty."""

    name: str
    """Benchmark that publishes files of this kind; also the prefix of ids made from row numbers."""
    required: tuple[str, ...]
    """Columns that identify the layout; matched exactly."""
    text: str
    id: str = ""
    """Column of the id; without one the id is the row's number."""
    category: str = ""
    context: str = ""
    target: str = ""
    """Column kept as metadata `target`: how a complying answer starts."""
    label: str = ""
    labels: Mapping[str, bool] = field(default_factory=dict)
    """Value of the label column → whether the row's request is harmful; without labels the configuration decides."""
    metadata: tuple[str, ...] = ()
    """Columns kept in `Prompt.metadata` under their own name where they are not empty."""
    splits: Mapping[str, bool] = field(default_factory=dict)
    """Splits that are files of their own with these very columns → whether their requests are harmful."""
    paired: bool = False
    """Whether the category is an XSTest type, which has an unsafe contrast (`pair_of`)."""
    official: str = ""
    """File and repository that publish it."""


LAYOUTS: Final = (
    Layout(
        name="harmbench",
        required=("Behavior", "BehaviorID", "ContextString", "SemanticCategory"),
        text="Behavior",
        id="BehaviorID",
        category="SemanticCategory",
        context="ContextString",
        target="Target",
        metadata=("FunctionalCategory", "Tags"),
        official="data/behavior_datasets/harmbench_behaviors_text_all.csv of centerforaisafety/HarmBench",
    ),
    # AdvBench as redistributed with HarmBench, with HarmBench's own column names.
    Layout(
        name="advbench",
        required=("Behavior", "BehaviorID", "Category"),
        text="Behavior",
        id="BehaviorID",
        category="Category",
        context="ContextString",
        metadata=("Tags",),
        official="data/behavior_datasets/extra_behavior_datasets/advbench_behaviors.csv of centerforaisafety/HarmBench",
    ),
    Layout(
        name="advbench",
        required=("goal", "target"),
        text="goal",
        target="target",
        official="data/advbench/harmful_behaviors.csv of llm-attacks/llm-attacks",
    ),
    Layout(
        name="jailbreakbench",
        required=("Goal", "Behavior"),
        text="Goal",
        category="Category",
        target="Target",
        metadata=("Behavior", "Source"),
        splits={"harmful": True, "benign": False},
        official="data/harmful-behaviors.csv or data/benign-behaviors.csv of the dataset JailbreakBench/JBB-Behaviors",
    ),
    Layout(
        name="strongreject",
        required=("forbidden_prompt", "category"),
        text="forbidden_prompt",
        category="category",
        metadata=("source",),
        official="strongreject_dataset/strongreject_dataset.csv of alexandrasouly/strongreject",
    ),
    Layout(
        name="xstest",
        required=("prompt", "type", "label"),
        text="prompt",
        id="id",
        category="type",
        label="label",
        labels={"unsafe": True, "safe": False},
        metadata=("focus", "note"),
        paired=True,
        official="xstest_prompts.csv of paul-rottger/xstest",
    ),
    Layout(name=PLAIN, required=("prompt",), text="prompt", id="id", category="category", context="context"),
)
"""Known layouts; the first whose required columns a file has is taken."""

BENCHMARKS: Final = tuple(dict.fromkeys(layout.name for layout in LAYOUTS if layout.name != PLAIN))
"""Names of the benchmarks, each a prompt source that takes its own layouts only."""

_SHARED_CONTRASTS: Final = {
    "nons_group_real_discr": "discr",
    "real_group_nons_discr": "discr",
    "privacy_public": "privacy",
    "privacy_fictional": "privacy",
}
"""XSTest types whose contrast has a name of its own, which two safe types share."""


def pair_of(kind: str) -> str:
    """The base type that a safe XSTest type and its unsafe contrast share.

    XSTest (2308.01263) has ten safe types and eight contrasts: two contrasts serve two safe types each. Pairs are of
    types, not of prompts: the file has no pair id, and its `focus` repeats within types and differs in some pairs.

    Example:
        ``homonyms`` and ``contrast_homonyms`` give ``homonyms``; ``privacy_public`` and ``contrast_privacy`` give
        ``privacy``.
    """
    base = kind.removeprefix("contrast_")
    return _SHARED_CONTRASTS.get(base, base)


def candidates(source: str) -> tuple[Layout, ...]:
    """The layouts that a source takes: a benchmark its own, a file format all."""
    return tuple(layout for layout in LAYOUTS if source == layout.name or source not in BENCHMARKS)


def expected(source: str) -> str:
    """What a source's file must look like, as a phrase for messages and listings."""
    kinds = {
        "csv": "a UTF-8 CSV file with the columns",
        "jsonl": "a UTF-8 file of one JSON object a line with the keys",
        "parquet": "a Parquet file with the columns",
        "hf": "a dataset with the columns",
    }
    kind = kinds.get(source, "a CSV, JSONL or Parquet file with the columns")
    return f"{kind} " + " or ".join(f"`{','.join(layout.required)}`" for layout in candidates(source))


def official(source: str) -> str:
    """Where a benchmark's file is published, as a sentence; empty for file formats."""
    files = [layout.official for layout in candidates(source)] if source in BENCHMARKS else []
    return f"Published as {', or '.join(files)}." if files else ""


def choose_layout(columns: Sequence[str], where: str, config: PromptsConfig) -> Layout:
    """Find what a file's columns mean: the known layout that they fit, with the configuration's overrides.

    Args:
        columns: The file's columns or keys.
        where: File and, if any, line of the header, for messages.
        config: Source, column mapping and labels.

    Raises:
        ConfigError: There are no columns, one is there twice, no layout fits, or the mapping names one that is
            not there.
    """
    if not columns:
        raise ConfigError(f"{where} is empty. Expected: {expected(config.source)}.")
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise ConfigError(f"{where}: column `{brief(twice[:1])}` is there twice.")
    mapped = {role: column for role, column in config.columns.model_dump().items() if column}
    for column in mapped.values():
        if column not in columns:
            raise unknown_name(f"column of {where}", column, columns, of_file=True)
    known = (layout for layout in candidates(config.source) if set(layout.required) <= set(columns))
    found = next(known, None)
    if found is None:
        if "text" not in mapped:
            raise ConfigError(
                f"{where}: the columns are `{brief(columns, ',')}`. Expected: {expected(config.source)}. "
                "Or name the column of the text: `columns: {text: …}`."
            )
        name = config.source if config.source in BENCHMARKS else PLAIN
        found = Layout(name=name, required=(), text=mapped["text"])
    return _labelled(replace(found, **mapped), config)


def _labelled(layout: Layout, config: PromptsConfig) -> Layout:
    if config.labels and not layout.label:
        raise ConfigError(f"prompts `{config.key}`: `labels` needs the column of the labels: `columns: {{label: …}}`.")
    labels = config.labels or layout.labels
    if layout.label and not labels:
        raise ConfigError(
            f"prompts `{config.key}`: `columns.label` needs `labels`: which values of `{layout.label}` are harmful, "
            "e.g. `labels: {unsafe: true, safe: false}`."
        )
    return replace(layout, labels=labels)
