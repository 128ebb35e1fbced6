"""What an engine is: it makes rollouts for a job, and reports its identity and its work. And the table of engines.

Adding an engine is one file with a class that follows `Engine`, and one line in `ENGINES`. A job hands out
requests and takes back results, in any order and number: an engine on this machine takes batches, one that speaks to a
server keeps as many requests in flight as the server bears, and one that is a pool of workers does both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeGuard

from hardsample.engines.results import Completion, Failure, Prepared

if TYPE_CHECKING:
    from hardsample.engines.features import Features


@dataclass(frozen=True)
class EngineEntry:
    """One line of the table of engines."""

    target: str
    """`module:Class`, imported when the engine is used: this module imports no torch."""
    help: str
    """Where it generates, in a few words, for the help text of the setting `engine`."""
    server: bool = False
    """Whether the model is on a server: it needs `base_url`, and settings of a model on this machine are rejected."""


ENGINES = {
    "transformers": EngineEntry("hardsample.engines.transformers:TransformersEngine", "this machine"),
    "openai": EngineEntry("hardsample.engines.openai:OpenAIEngine", "a server with OpenAI's interface", server=True),
}
"""Name → entry of each engine."""

Settings = Any
"""A `hardsample.scoring.config.ScoringConfig`, which lies above this room: each engine reads the fields it needs."""


@dataclass(frozen=True)
class Request:
    """One rollout to make: a record (`id`, `prompt`, `images`), a mask ratio λ and a realization k."""

    record: Mapping[str, Any]
    ratio: float
    realization: int

    @property
    def key(self) -> tuple[str, float, int]:
        """Id, mask ratio and realization: unique within a job."""
        return self.record["id"], self.ratio, self.realization


class Job(Protocol):
    """The work, as an engine sees it."""

    @property
    def finished(self) -> Sequence[Any]:
        """Samples that are done and not rejected."""

    def take(self, size: int) -> list[Request]:
        """Return up to `size` rollouts to make now, all of records with images or all of records without.

        None are left for now if it is empty, and none at all if nothing is under way either: results may ask for more.
        """

    def fills(self, size: int) -> bool:
        """Return whether `take(size)` would be full now."""

    def settle(self, results: Sequence[tuple[Request, Completion | Failure]], under_way: int, note: str = "") -> None:
        """Grade and commit results, in one transaction: when this returns they are kept.

        Args:
            results: of requests that were taken; equal copies of these will do.
            under_way: rollouts that are made side by side.
            note: shown beside the progress.
        """


@dataclass(frozen=True)
class RunInfo:
    """An engine's part of run.json: what it is, and what it did in this run."""

    device: str
    """Where the model is: a torch device, or a server's address."""
    dtype: str | None
    """Of the weights; None if it is not known."""
    backends: dict[str, str]
    """Op or step → the backend that ran it."""
    seconds: dict[str, float]
    """Step → time spent in it, in this run."""
    counts: dict[str, Any] = field(default_factory=dict)
    """Further counts of this run, such as requests and tokens."""
    sampling: dict[str, Any] | None = None
    """Which sampling settings a server's sampler took; None if the engine samples itself."""


class Engine(Protocol):
    """A maker of rollouts: created by `from_config`, and a context manager around `run`."""

    shows_attention: bool
    """Whether CMAB can read its model's attention; it is an `AttentionEngine` then."""
    processor: Any
    """Of the model, which the images of the records are checked with before weights load; None if a server has it."""

    @classmethod
    def from_config(cls, model: str, config: Settings, notice: Callable[[str], None] = print) -> Self:
        """Make the engine for a model; cheap, no weights are loaded.

        Args:
            model: folder or hub id, `demo`, or its name on a server.
            config: settings of the job.
            notice: called with a sentence when something did not go as planned.

        Raises:
            EngineError: the engine cannot be made.
        """

    def __enter__(self) -> Self:
        """Load the weights, start the workers.

        Raises:
            EngineError: the model cannot be loaded.
        """

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release what `__enter__` took."""

    def identity(self) -> dict[str, Any]:
        """Return everything about the engine that changes a rollout, as JSON values.

        `max_new_tokens`, as it is used, is part of it. A folder cannot be continued with another identity.
        """

    def run(self, job: Job) -> None:
        """Make all rollouts of a job.

        Raises:
            EngineError: the model does not run; results that were settled are kept.
        """

    def run_info(self) -> RunInfo:
        """Return the engine's part of run.json; called before the job and after it."""


class AttentionEngine(Engine, Protocol):
    """An engine whose model CMAB runs stored completions through once more."""

    model: Any
    """Of transformers."""
    batch_size: int
    pad_token_id: int
    notice: Callable[[str], None]

    def prepare(self, requests: Sequence[Request]) -> Prepared:
        """Make the model's inputs of a batch."""

    def moved(self, value: Any) -> Any:
        """Return a value of the processor's output on the model's device."""

    def refusal(self, error: BaseException, size: int) -> str:
        """Return why a batch of this size failed; if memory ran out, make later batches half as large."""


SettleFeatures = Callable[[Sequence[tuple[Mapping[str, Any], "Features | Failure"]]], None]
"""Takes the features of records, or why they have none."""


class FeatureEngine(Engine, Protocol):
    """An engine that shows features of samples without rollouts."""

    def run_features(self, records: Iterable[Mapping[str, Any]], settle: SettleFeatures) -> None:
        """Make the features of records, each from one prefill of its prompt with whole images.

        Args:
            records: in order; read as they are needed.
            settle: gets results as they come.

        Raises:
            EngineError: the model does not run; what was settled is kept.
        """


def can_attend(engine: Engine) -> TypeGuard[AttentionEngine]:
    """Return whether CMAB can read the attention of an engine's model."""
    return engine.shows_attention


def can_show_features(engine: Engine) -> TypeGuard[FeatureEngine]:
    """Return whether an engine shows features of samples."""
    return hasattr(engine, "run_features")


def engine_class(name: str) -> type[Engine]:
    """Import the class of an engine.

    Args:
        name: a key of `ENGINES`.
    """
    module, _, attribute = ENGINES[name].target.partition(":")
    return getattr(import_module(module), attribute)
