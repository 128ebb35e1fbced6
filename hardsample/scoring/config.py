"""Every setting of a scoring job, with its help text: the command line and the Python API share this one list."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from hardsample.data.images import DEFAULT_MAX_PIXELS
from hardsample.data.records.option_text import DEFAULT_TEMPLATE, check_template
from hardsample.engines.protocol import ENGINES
from hardsample.errors import ConfigError
from hardsample.metrics.cmab import CmabConfig
from hardsample.metrics.pism import PismConfig

METRICS = ("pism", "cmab")
DTYPES = ("float32", "bfloat16", "float16", "auto")
BOX_FORMATS = ("pixels", "relative_1000")


@dataclass(frozen=True)
class ScoringConfig(PismConfig):
    """Settings of `hardsample.scoring.score.score`; those of the PISM search are inherited.

    Raises:
        ValueError: names the field, its value, the bound and the fix.
    """

    metric: tuple[str, ...] = field(
        default=("pism",),
        metadata={
            "help": "pism (mask pixels until the model fails), and cmab (does the answer attend to the image, the "
            "text, or both; one forward of each prompt, and of the completions at λ = 0 after it)"
        },
    )
    cmab: CmabConfig = field(default=CmabConfig(), metadata={"help": "settings of the metric cmab"})
    limit: int | None = field(default=None, metadata={"help": "score the first N records only, at least 1"})
    image_root: str | None = field(
        default=None,
        metadata={"help": "folder of relative image paths, which they may not leave (default: the data's)"},
    )
    grader: str | None = field(
        default=None,
        metadata={
            "help": "math, ocr, counting, grounding, detection, choice or text, for records that do not say (default: "
            "told from each record)"
        },
    )
    options_template: str = field(
        default=DEFAULT_TEMPLATE,
        metadata={
            "help": "how options that a question does not list are written below it: lines, the one with {option} for "
            "each option, {letter} is A, B, …; none leaves questions as they are"
        },
    )
    answer_boxes: str | None = field(
        default=None,
        metadata={
            "help": "pixels or relative_1000 (0-1000): how this model writes boxes (default: as the record's are)"
        },
    )
    engine: str = field(
        default="transformers",
        metadata={"help": "who generates: transformers (this machine) or openai (a server with OpenAI's interface)"},
    )
    base_url: str | None = field(
        default=None,
        metadata={"help": "address of the engine openai, such as http://localhost:8000/v1; its key: OPENAI_API_KEY"},
    )
    concurrency: int = field(
        default=64, metadata={"help": "the most requests in flight to a server; fewer while it is overloaded"}
    )
    request_timeout: float = field(default=600.0, metadata={"help": "seconds that a server's reply may take, above 0"})
    retries: int = field(
        default=12,
        metadata={"help": "tries after the first, of a request that fails while the server answers others"},
    )
    server_timeout: float = field(
        default=600.0, metadata={"help": "seconds to wait for a server that answers nothing, before the job ends"}
    )
    temperature: float = field(default=0.7, metadata={"help": "sampling temperature T, 0 (greedy) or above"})
    max_new_tokens: int | None = field(
        default=None,
        metadata={"help": "longest completion in tokens (default: the model's generation config, else 1024)"},
    )
    batch_size: int = field(
        default=64, metadata={"help": "rollouts in one generate call, at least 1; halved when memory runs out"}
    )
    seed: int = field(default=0, metadata={"help": "of masks and sampling noise, 0 to 2**63 - 1"})
    device: str | None = field(default=None, metadata={"help": "torch device (default: the first GPU, else cpu)"})
    dtype: str | None = field(
        default=None,
        metadata={"help": "float32, bfloat16, float16 or auto (default: float32 on a CPU, the checkpoint's on a GPU)"},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "attention implementation of transformers, such as sdpa (default: its choice)"}
    )
    max_pixels: int = field(
        default=DEFAULT_MAX_PIXELS, metadata={"help": "images of more pixels than this are refused, at least 1"}
    )
    strict: bool = field(default=False, metadata={"help": "stop at the first bad record instead of rejecting it"})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "run Python code that the checkpoint brings (only if you trust its authors)"}
    )

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        self._check_metric()
        for name in ("limit", "max_new_tokens", "batch_size", "max_pixels", "concurrency"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} is {value}, must be an integer of at least 1: choose one, or leave it out")
        if not self.temperature >= 0 or self.temperature == float("inf"):
            raise ConfigError(
                f"temperature is {self.temperature}, must be 0 (greedy) or above: choose one, such as 0.7"
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}, must lie in 0 to 2**63 - 1: choose one, such as 0")
        if not isinstance(self.retries, int) or self.retries < 0:
            raise ConfigError(f"retries is {self.retries}, must be an integer from 0: choose one, such as 12")
        for name in ("request_timeout", "server_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}, must be a number of seconds above 0: choose one")
        check_template(self.options_template)
        self._check_engine()
        for name, choices in (("engine", ENGINES), ("dtype", DTYPES), ("answer_boxes", BOX_FORMATS)):
            if getattr(self, name) not in (*choices, None):
                raise ConfigError(f"{name} is {getattr(self, name)!r}, must be one of {', '.join(choices)}: choose one")

    def _check_metric(self) -> None:
        """Make `metric` a tuple in the order of `METRICS`; it may be given as text, such as `pism,cmab`."""
        given: Any = self.metric
        metric = [name.strip() for name in (given.split(",") if isinstance(given, str) else given)]
        if not metric or not set(metric) <= set(METRICS) or len(set(metric)) < len(metric):
            raise ConfigError(
                f"metric is {','.join(metric)!r}, must be pism, or pism,cmab, or cmab alone to add it to a finished run"
            )
        object.__setattr__(self, "metric", tuple(name for name in METRICS if name in metric))

    def _check_engine(self) -> None:
        """Find what does not go with the engine."""
        if self.engine != "openai":
            if self.base_url is not None:
                raise ConfigError("base_url is given, but the engine runs on this machine: add --engine openai")
            return
        if self.base_url is None:
            raise ConfigError("the engine openai needs the server's address: give --base-url http://localhost:8000/v1")
        if self.mask_space == "model":
            raise ConfigError(
                "mask_space is 'model', but a server makes the model's inputs itself: use --mask-space source"
            )
        for name in ("device", "dtype", "attn_implementation"):
            if getattr(self, name) is not None:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, but the server has the model: leave it out")


def help_of(name: str) -> str:
    """The help text of a setting."""
    return next(one.metadata["help"] for one in fields(ScoringConfig) if one.name == name)
