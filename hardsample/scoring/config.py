"""Every setting of a scoring job with its help text: the command line and the Python API share these declarations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hardsample.data.records.defaults import DEFAULT_MAX_PIXELS, DEFAULT_TEMPLATE, GRADERS, check_template
from hardsample.engines.protocol import ENGINES
from hardsample.errors import ConfigError
from hardsample.metrics.options import CmabConfig, PismConfig
from hardsample.scoring.sharding.shard import Shard
from hardsample.settings import check_settings, field_of, setting

METRICS = ("pism", "cmab")
DTYPES = ("float32", "bfloat16", "float16", "auto")
BOX_FORMATS = ("pixels", "relative_1000")


@dataclass(frozen=True)
class RolloutConfig:
    """What a rollout depends on, in scoring and in evaluation: the records, the engine, the sampling.

    Raises:
        ConfigError: names the field, its value, the bound and the fix.
    """

    temperature: float = setting(0.7, "sampling temperature T, 0 (greedy) or above", min=0.0, group="Generation")
    max_new_tokens: int | None = setting(
        None, "longest completion in tokens (default: the model's generation config, else 1024)", min=1
    )
    batch_size: int = setting(64, "rollouts in one generate call; halved when memory runs out", min=1)
    seed: int = setting(0, "of masks and sampling noise, 0 to 2**63 - 1", min=0)
    device: str | None = setting(None, "torch device (default: the first GPU, else cpu)")
    dtype: str | None = setting(
        None,
        "dtype of the weights (default: float32 on a CPU, the checkpoint's on a GPU)",
        choices=DTYPES,
    )
    attn_implementation: str | None = setting(
        None, "attention implementation of transformers, such as sdpa (default: its choice)"
    )
    trust_remote_code: bool = setting(
        False, "run Python code that the checkpoint brings (only if you trust its authors)"
    )
    limit: int | None = setting(None, "take the first N records only", min=1, group="Data")
    image_root: str | None = setting(
        None, "folder of relative image paths, which they may not leave (default: the data's)"
    )
    grader: str | None = setting(
        None, "grader of records that name none (default: chosen for each record by its solution)", choices=GRADERS
    )
    options_template: str = setting(
        DEFAULT_TEMPLATE,
        "how options that a question does not list are written below it: lines, the one with {option} for each "
        "option, {letter} is A, B, …; none leaves questions as they are",
        escapes=True,
    )
    answer_boxes: str | None = setting(
        None,
        "how this model writes boxes: in pixels or in relative_1000, 0 to 1000 (default: as the record's)",
        choices=BOX_FORMATS,
    )
    max_pixels: int = setting(DEFAULT_MAX_PIXELS, "records with an image of more pixels than this are rejected", min=1)
    strict: bool = setting(False, "stop at the first bad record instead of rejecting it")
    engine: str = setting(
        "transformers",
        "what generates: " + " or ".join(f"{name} ({entry.help})" for name, entry in ENGINES.items()),
        choices=ENGINES,
        group="Engine and server",
    )
    base_url: str | None = setting(
        None, "address of an engine's server, such as http://localhost:8000/v1; its key: OPENAI_API_KEY"
    )
    concurrency: int = setting(64, "most requests in flight to a server; fewer while it is overloaded", min=1)
    request_timeout: float = setting(600.0, "seconds that a server's reply may take, above 0")
    retries: int = setting(12, "retries of a request that fails while the server answers others", min=0)
    server_timeout: float = setting(600.0, "seconds to wait for a server that answers nothing, before the job ends")

    def __post_init__(self) -> None:
        """Check every field."""
        check_settings(self)
        if self.temperature == float("inf"):
            raise ConfigError("temperature is inf, must be finite: choose one, such as 0.7")
        if self.seed >= 2**63:
            raise ConfigError(f"seed is {self.seed}, must lie in 0 to 2**63 - 1: choose one, such as 0")
        for name in ("request_timeout", "server_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}, must be a number of seconds above 0: choose one")
        check_template(self.options_template)
        self._check_engine()

    def _check_engine(self) -> None:
        """Reject settings that do not go with the engine."""
        if not ENGINES[self.engine].server:
            if self.base_url is not None:
                servers = " or ".join(f"--engine {name}" for name, entry in ENGINES.items() if entry.server)
                raise ConfigError(f"base_url is given, but the engine {self.engine} uses no server: add {servers}")
            return
        if self.base_url is None:
            raise ConfigError(
                f"the engine {self.engine} needs the server's address: give --base-url http://localhost:8000/v1"
            )
        for name in ("device", "dtype", "attn_implementation"):
            if getattr(self, name) is not None:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, but the server has the model: leave it out")


@dataclass(frozen=True)
class ScoringConfig(PismConfig, RolloutConfig):
    """Settings of `hardsample.scoring.score.score`: of the PISM search, of CMAB, and of the rollouts.

    Raises:
        ConfigError: names the field, its value, the bound and the fix.
    """

    metric: tuple[str, ...] = setting(
        ("pism",),
        "pism (mask pixels until the model fails), and cmab (does the answer attend to the image, the text, or both; "
        "one forward of each prompt, and of the completions at λ = 0 after it)",
        group="Metrics",
    )
    cmab: CmabConfig = field(default=CmabConfig(), metadata={"help": "settings of the metric cmab"})
    shard: str | None = setting(
        None,
        "I/N, such as 3/16: score the third of sixteen shares of the records, chosen by a hash of their ids, into "
        "OUTPUT/shards; `hardsample merge OUTPUT` then makes one result of all",
        group="Data",
    )
    features: bool = setting(
        True,
        "keep 512 bytes a sample of what the prefill of its prompt shows, to predict difficulty from",
        group="Features",
    )

    def __post_init__(self) -> None:
        """Check every field; `metric` may be given as text, such as `pism,cmab`."""
        metric: Any = self.metric
        if isinstance(metric, str):
            object.__setattr__(self, "metric", tuple(name.strip() for name in metric.split(",")))
        PismConfig.__post_init__(self)
        RolloutConfig.__post_init__(self)
        self._check_metric()
        if self.shard is not None:
            Shard.parse(self.shard)
            if self.search == "adaptive":
                raise ConfigError(
                    f"shard is {self.shard!r}, but the adaptive search learns from all records at once: leave out "
                    "--shard, or choose another --search"
                )
        if ENGINES[self.engine].server and self.mask_space == "model":
            raise ConfigError(
                "mask_space is 'model', but a server makes the model's inputs itself: use --mask-space source"
            )

    def _check_metric(self) -> None:
        """Make `metric` a tuple in the order of `METRICS`."""
        metric = self.metric
        if not metric or not set(metric) <= set(METRICS) or len(set(metric)) < len(metric):
            raise ConfigError(
                f"metric is {','.join(metric)!r}, must be pism, or pism,cmab, or cmab alone to add it to a finished run"
            )
        object.__setattr__(self, "metric", tuple(name for name in METRICS if name in metric))


def _as_in_scoring(name: str) -> Any:
    """Declare a setting as `RolloutConfig` does."""
    source = field_of(RolloutConfig, name)
    return field(default=source.default, metadata=source.metadata)


@dataclass(frozen=True)
class FeaturesConfig:
    """Settings of `hardsample.scoring.features.add_features`.

    Raises:
        ConfigError: names the field, its value, the bound and the fix.
    """

    encoder: str | None = setting(
        None,
        "folder or hub id of a model on this machine whose features are taken (default: the model that is scored)",
        group="Model",
    )
    batch_size: int = setting(64, "prompts in one forward; halved when memory runs out", min=1)
    device: str | None = _as_in_scoring("device")
    dtype: str | None = _as_in_scoring("dtype")
    attn_implementation: str | None = _as_in_scoring("attn_implementation")
    trust_remote_code: bool = _as_in_scoring("trust_remote_code")
    limit: int | None = _as_in_scoring("limit")
    image_root: str | None = _as_in_scoring("image_root")
    grader: str | None = _as_in_scoring("grader")
    options_template: str = _as_in_scoring("options_template")
    max_pixels: int = _as_in_scoring("max_pixels")
    engine: str | None = setting(
        None,
        f"where the model is: {' or '.join(ENGINES)} (default: as scored, else transformers)",
        choices=ENGINES,
        group="Engine and server",
    )
    base_url: str | None = _as_in_scoring("base_url")
    concurrency: int = _as_in_scoring("concurrency")
    request_timeout: float = _as_in_scoring("request_timeout")
    retries: int = _as_in_scoring("retries")
    server_timeout: float = _as_in_scoring("server_timeout")

    def __post_init__(self) -> None:
        """Check every field; what goes with which engine is checked when the engine is known."""
        check_settings(self)
        if self.encoder is not None and (self.base_url or ENGINES[self.engine or "transformers"].server):
            raise ConfigError(
                f"encoder is {self.encoder!r}, a model on this machine: leave out --engine and --base-url, or --encoder"
            )

    def engine_config(self, **changes: Any) -> ScoringConfig:
        """Return what the engine reads, with some settings replaced."""
        own = {name: value for name, value in vars(self).items() if name != "encoder"}
        return ScoringConfig(**own | {"engine": self.engine or "transformers"} | changes)
