"""The configuration tree of a run.

The tree is the truth; YAML is one loader of it (`dsprobe.config_loader`). Components (attacks, schedules, scorers …)
appear as a `Spec`: a name plus the parameters of that component's own nested ``Config``, validated through its
registry when the plan is resolved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, field_validator, model_validator

from dsprobe.errors import ConfigError


class Strict(BaseModel):
    """Immutable, typed, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    refused: ClassVar[Mapping[str, str]] = {}
    """Keys that one may expect here → why there are none."""


class Spec(BaseModel):
    """A component by name, with its parameters beside the name: ``{name: dija, spans: 4}`` or just ``dija``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    alias: str = ""
    """Name under which results appear; the component's name when empty."""
    family: str = ""
    """Key of the grid that the spec is a point of (`dsprobe.config_grid`); empty for a spec of its own."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def params(self) -> dict[str, Any]:
        """Everything beside `name`, `alias` and `family`."""
        return dict(self.__pydantic_extra__ or {})

    @property
    def key(self) -> str:
        """The alias, or the name where no alias is given."""
        return self.alias or self.name


class ModelConfig(Strict):
    """Which model, from where, and how it is placed."""

    name: str
    """Label in results; also the embedded model's name when `path` is not given."""
    path: str | None = None
    """Local folder, hub id, or URL such as `s3://bucket/models/dream`, whose weights are fetched once per machine;
    `None` picks the embedded model called `name`."""
    revision: str | None = None
    """Commit hash of the hub repository; required for hub ids."""
    family: Literal["auto", "dream", "llada", "causal"] = "auto"
    """Adapter; `auto` reads `model_type` in `config.json`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights and activations; `auto` is float32 on the CPU and the checkpoint's dtype elsewhere."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    compile: bool = False
    """Compile a diffusion model's body with `torch.compile`: faster steps, after about a minute per tensor shape."""
    mask_token_id: int | None = None
    """Overrides the id found in `config.json` or the tokenizer."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class ColumnsConfig(Strict):
    """Which column (or key) of a prompt file means what; empty keeps the known layout's own column."""

    text: str = ""
    """The request. Needed where the file's columns are none of the known layouts."""
    id: str = ""
    """Unique ids; without them a prompt is known by its row's number."""
    category: str = ""
    context: str = ""
    """Text put before the request."""
    label: str = ""
    """Column that `labels` explains."""
    target: str = ""
    """How a complying answer starts; kept as the prompt's metadata `target`."""


class SampleConfig(Strict):
    """A stratified sample of a prompt set."""

    size: int | None = Field(default=None, ge=1)
    """Number of prompts; `None` keeps all."""
    seed: int = 0
    by: Literal["category", "harmful"] = "category"
    """What the strata are."""


class PromptsConfig(Strict):
    """One prompt set."""

    source: str
    """`toy`, a benchmark (`advbench`, `harmbench`, …), a file format (`csv`, `jsonl`, `parquet`), or `hf`."""
    name: str = ""
    """Label in results; the source when empty."""
    path: str | None = None
    """File for file-based sources; hub id or local folder for `hf`."""
    revision: str | None = None
    """Commit hash of a hub dataset; required for hub ids."""
    subset: str | None = None
    """Configuration of an `hf` dataset, where it has several."""
    split: str | None = None
    """Toy world: `restricted` (when not given), `benign` or `oversensitive`. JailbreakBench: `harmful` or `benign`.
    `hf`: any split of the dataset; needed where it has several."""
    columns: ColumnsConfig = ColumnsConfig()
    """Overrides of what the columns mean."""
    labels: dict[str, bool] = Field(default_factory=dict)
    """Value of the label column → whether the row's request is harmful; numbers and truth values as text in quotes."""
    categories: tuple[str, ...] | None = None
    """Keep only these categories; `None` is all."""
    keep: Literal["all", "harmful", "benign"] = "all"
    """Keep only requests of this kind, e.g. the safe half of XSTest."""
    sample: SampleConfig = SampleConfig()
    """Draw a stratified sample of what the filters left."""
    limit: int | None = Field(default=None, ge=1)
    """Keep the first N prompts; the report marks limited runs."""
    seed: int = 0
    """Phrasing seed of generated prompts."""
    harmful: bool = True
    """Whether a file's prompts count as harmful requests, in files without labels."""
    attacks: tuple[str, ...] | None = None
    """Keys of the attacks to run on this set, or of their grids; `None` is all of them."""
    decodings: tuple[str, ...] | None = None
    """Names of the decodings to run on this set; `None` is all of them."""
    guardrails: tuple[str, ...] | None = None
    """Names of the guardrails to run on this set; `None` is all of them."""

    @property
    def key(self) -> str:
        """The label, or the source where no label is given."""
        return self.name or self.source


MAX_STEPS: Final = 32_767
"""Steps and response positions are stored in 16 bits."""


class DecodingConfig(Strict):
    """How a canvas is decoded. Autoregressive models use `reply_length`, `temperature`, `top_p` and `top_k` only."""

    name: str = "default"
    """Label in results."""
    steps: int | None = Field(default=32, ge=1, le=MAX_STEPS)
    """Denoising steps; `None` lets the schedule decide (dilated: rounds of each block)."""
    reply_length: int = Field(default=42, ge=1, le=MAX_STEPS)
    """Response positions."""
    schedule: Spec = Spec(name="uniform")
    """How many positions a step commits."""
    ordering: Spec = Spec(name="low_confidence")
    """Which positions a step commits first."""
    block_length: int | None = Field(default=None, ge=1)
    """Semi-autoregressive blocks; `None` is one block."""
    threshold: float | None = Field(default=None, ge=0.0, le=1.0)
    """Commit every position at least this probable, at least one a step (Fast-dLLM 2505.22618)."""
    temperature: float = Field(default=0.0, ge=0.0)
    """0 is greedy."""
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=1)
    cfg_scale: float = Field(default=0.0, ge=0.0)
    """Classifier-free guidance weight w: logits = u + (1 + w)(c - u); 0 is off."""
    eos_early_stop: bool = False
    """Finish a row once everything left of its first end-of-text token is decided."""
    max_extra_steps: int = Field(default=16, ge=0, le=MAX_STEPS)
    """Bound on steps granted to rows that a guardrail re-masked."""


UNGUARDED: Final = "none"
"""Label of the condition without interventions."""


class GuardrailConfig(Strict):
    """Guardrails that act together, in the order listed; ``none`` stands for no intervention."""

    name: str = Field(default=UNGUARDED, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Label in results."""
    stack: tuple[Spec, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _label_tells_whether_guarded(self) -> GuardrailConfig:
        if (self.name == UNGUARDED) != (not self.stack):
            raise ConfigError(
                f"guardrail `{self.name}`: only `{UNGUARDED}` has an empty stack; list what acts, e.g. "
                "`{name: late, stack: [{name: renoise, window: late}]}`."
            )
        return self


class RiskConfig(Strict):
    """In-loop risk."""

    scorer: Spec = Spec(name="toy_lexicon")
    threshold: float = Field(default=0.5, ge=0.0, le=1.0)
    """θ: risk at or above it counts as harmful in the temporal measures."""


RawKeep = Literal["steps", "topk", "hidden", "logits"]
Bytes = Annotated[ByteSize, Field(gt=0)]
"""A number of bytes, or a text with a unit: ``2GB``, ``64MiB``."""


class RawConfig(Strict):
    """Raw logs: what is stored of steps beside the tables. Nothing unless `keep` says so."""

    keep: tuple[RawKeep, ...] = ()
    """`steps`: every trajectory's steps and positions, for new statistics over old runs (`dsprobe reduce`). Of chosen
    trajectories only: `topk` (needs `recording.top_k`), `hidden` (needs `recording.hidden_layers`) and `logits`."""
    sample: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the trajectories in the random sample; the same ones whatever the shards."""
    sample_rows: int = Field(default=0, ge=0)
    """At least this many random trajectories of each shard."""
    extreme: int = Field(default=0, ge=0)
    """Beside the sample, the trajectories of each shard with the largest temporal risk integral."""
    max_bytes: Bytes = ByteSize(10 * 10**9)
    """Raw logs of the whole run at most; each shard gets an equal part."""
    max_shard_bytes: Bytes = ByteSize(10**9)
    """Raw logs of a shard at most. Trajectories that do not fit are counted and dropped, never step logs."""
    max_batch_bytes: Bytes = ByteSize(4 * 10**9)
    """Logits of one batch in memory at most; a plan that may need more is refused."""
    flush_bytes: Bytes = ByteSize(64 * 10**6)
    """A file is closed once it is this large and its trajectory is complete; a kill loses what is not closed."""

    @model_validator(mode="after")
    def _says_what_and_of_which(self) -> RawConfig:
        chosen, vectors = self.sample > 0 or self.sample_rows or self.extreme, set(self.keep) - {"steps"}
        if vectors and not chosen:
            raise ConfigError(
                f"recording.raw.keep: {', '.join(sorted(vectors))} would be kept of no trajectory; give `sample` (a "
                "share), `sample_rows` or `extreme` (numbers per shard)."
            )
        if chosen and not vectors:
            raise ConfigError(
                "recording.raw chooses trajectories, and `keep` lists nothing to store of them: topk, hidden or logits."
            )
        return self


class RecordingConfig(Strict):
    """What is kept of every step."""

    enabled: bool = True
    top_k: int = Field(default=0, ge=0)
    """Top-k tokens per masked position and step; 0 keeps none."""
    kl: Literal["auto", "logits", "hidden", "off"] = "auto"
    """State behind the step-to-step KL: previous logits, or previous hidden states (no vocabulary-sized state)."""
    max_state_mib: int = Field(default=512, ge=1)
    """`auto` keeps previous logits up to this size."""
    hidden_layers: tuple[int, ...] = ()
    """Layers whose hidden states are kept at response positions."""
    sample_positions: int = Field(default=8, ge=0)
    """Trajectories per condition whose position rows are stored: a random sample …"""
    extreme_positions: int = Field(default=4, ge=0)
    """… and the ones with the largest temporal risk integral."""
    wall_seconds: bool = True
    """Record wall times, the only values that differ between two runs of one plan; without, tables are equal bytes."""
    raw: RawConfig = RawConfig()
    """Raw logs, kept on demand."""

    @model_validator(mode="after")
    def _raw_logs_are_recorded(self) -> RecordingConfig:
        needs = {"topk": ("top_k", bool(self.top_k)), "hidden": ("hidden_layers", bool(self.hidden_layers))}
        for kind in self.raw.keep:
            setting, there = needs.get(kind, ("enabled", self.enabled))
            if not there:
                raise ConfigError(f"recording.raw.keep: `{kind}` needs `recording.{setting}`, which is off.")
        return self


class GpuPrice(Strict):
    """What a card costs and computes, for estimates."""

    usd_per_hour: float = Field(gt=0.0)
    """On-demand price of one card with its share of the machine."""
    bf16_tflops: float = Field(gt=0.0)
    """Dense bfloat16 peak of one card, in 10¹² operations a second."""


class CostConfig(Strict):
    """What an estimate of GPU hours and money assumes (`dsprobe.experiment.cost`); replace it by your own figures."""

    gpu: str | None = None
    """Card of the price table; `None` is the cluster's own where it has one kind, and L4 elsewhere."""
    prices: dict[str, GpuPrice] = Field(default_factory=dict)
    """Card → price, beside or instead of the shipped table's, which is dated."""
    utilisation: float = Field(default=0.3, gt=0.0, le=1.0)
    """Share of a card's peak that a run reaches, everything between its forward passes included. An assumption."""
    spot_factor: float = Field(default=0.4, gt=0.0, le=1.0)
    """Spot price as a share of the on-demand price. An assumption: it moves by card, region and hour."""


class ExecutionConfig(Strict):
    """Where and in what portions the work runs. Never changes results."""

    executor: Literal["ray", "local"] = "ray"
    address: str = "local"
    """Ray address; `local` starts a private instance."""
    pool: str = "dsprobe"
    """Name of the replica pool; a running pool of that name is reused."""
    pool_idle_s: float = Field(default=1800.0, ge=0.0)
    """Seconds without work after which a pool on a cluster is ended and its nodes are free; 0 never. A private
    instance's pool ends with it."""
    replicas: int = Field(default=1, ge=1)
    """Replicas wanted."""
    min_replicas: int | None = Field(default=None, ge=1)
    """Replicas that are enough to begin with: the others join when there is room for them, and those that have nothing
    left to do at the end of a run are given back. All of them unless given."""
    num_gpus: float = Field(default=0.0, ge=0.0)
    """GPUs per replica; 0 runs on the CPU."""
    num_cpus: float = Field(default=1.0, ge=0.0)
    """CPUs per replica."""
    threads: int = Field(default=1, ge=1)
    """Torch threads per replica."""
    batch_size: int = Field(default=32, ge=1)
    shard_size: int = Field(default=64, ge=1)
    """Trajectories per shard, the unit of retry and resume."""
    retries: int = Field(default=3, ge=0)
    """How often a failed shard is tried again."""
    stall_s: float = Field(default=1800.0, ge=0.0)
    """Seconds without a finished batch after which a replica counts as hung and is replaced; a process that does not
    answer at all counts as hung after 2 minutes, or this if less. 0 waits without an end."""
    window_mib: int = Field(default=256, ge=1)
    """MiB of finished batches that may wait for a reducer; then its replicas wait for it."""
    cost: CostConfig = CostConfig()
    """Assumptions of cost estimates."""

    @model_validator(mode="after")
    def _least_is_not_above_wanted(self) -> ExecutionConfig:
        if (self.min_replicas or 1) > self.replicas:
            raise ConfigError(
                f"execution.min_replicas is {self.min_replicas}. Allowed: 1 to {self.replicas}, the replicas."
            )
        return self

    @property
    def least_replicas(self) -> int:
        """Replicas that are enough to begin with."""
        return min(self.replicas, self.min_replicas or self.replicas)


class S3Config(Strict):
    """How to reach an ``s3://`` root; what is not given comes from botocore's usual chain (environment, ``~/.aws``)."""

    model_config = ConfigDict(hide_input_in_errors=True)
    refused: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("key", "secret", "token", "password", "access_key", "secret_key", "access_key_id", "secret_access_key",
         "session_token", "aws_access_key_id", "aws_secret_access_key", "aws_session_token"),
        "Credentials do not belong in a configuration, which is stored with the run. Give them the usual AWS way: "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, ~/.aws/credentials, or an instance role.",
    )  # fmt: skip

    endpoint_url: str | None = None
    """``http(s)://host:port`` of a server other than AWS's."""
    region: str | None = None
    profile: str | None = None
    """Section of ``~/.aws/config`` and ``~/.aws/credentials``."""
    deadline_s: float = Field(default=120.0, gt=0.0)
    """Seconds for one request with all its retries."""

    @field_validator("endpoint_url")
    @classmethod
    def _is_bare_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if "@" in value:
            raise ConfigError(f"output.s3.endpoint_url must not hold credentials. {cls.refused['key']}")
        if not value.startswith(("http://", "https://")):
            raise ConfigError(f"output.s3.endpoint_url `{value}` must begin with http:// or https://.")
        return value


class OutputConfig(Strict):
    """Where results go."""

    root: str = "."
    """fsspec URL; the run lives under ``<root>/runs/<run_id>/``."""
    s3: S3Config = S3Config()


class RunConfig(Strict):
    """One experiment: prompts × attacks × models × decodings × guardrails, every step recorded."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(default=0, ge=0, lt=2**63)
    samples: int = Field(default=1, ge=1)
    """Trajectories per prompt and condition."""
    models: tuple[ModelConfig, ...] = Field(min_length=1)
    prompts: tuple[PromptsConfig, ...] = Field(min_length=1)
    attacks: tuple[Spec, ...] = (Spec(name="direct"),)
    decodings: tuple[DecodingConfig, ...] = (DecodingConfig(),)
    guardrails: tuple[GuardrailConfig, ...] = Field(default=(GuardrailConfig(),), min_length=1)
    risk: RiskConfig = RiskConfig()
    judges: tuple[Spec, ...] = ()
    recording: RecordingConfig = RecordingConfig()
    execution: ExecutionConfig = ExecutionConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _labels_are_unique(self) -> RunConfig:
        for kind, keys in {
            "models": [m.name for m in self.models],
            "prompts": [p.key for p in self.prompts],
            "attacks": [a.key for a in self.attacks],
            "decodings": [d.name for d in self.decodings],
            "guardrails": [g.name for g in self.guardrails],
            "judges": [j.key for j in self.judges],
        }.items():
            twice = sorted({key for key in keys if keys.count(key) > 1})
            if twice:
                raise ConfigError(f"{kind}: `{twice[0]}` is used twice; give each its own name or alias.")
        return self
