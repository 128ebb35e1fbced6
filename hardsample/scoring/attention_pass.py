"""CMAB as a job: the stored completions at λ = 0 are run through the model once more, no new generation.

A sample's completions share one run of its prompt where the model's cache allows it (`attention.shared_prefill`), and
equal ones are run once. A batch's balances are one transaction in the store, so a run that was stopped resumes, and
balances of another variant stay beside them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from math import exp, log
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hardsample.attention.interface import use_attention_mass, why_not_attention_mass
from hardsample.attention.masses import SampleMasses
from hardsample.attention.shared_prefill import shared_masses, why_not_shared
from hardsample.attention.teacher_forcing import forced_masses, teacher_forced
from hardsample.engines.preparing import preparing_thread
from hardsample.engines.protocol import AttentionEngine, Request
from hardsample.engines.results import Prepared
from hardsample.kernels.ops import chosen
from hardsample.metrics.cmab import CmabConfig, SampleAttention, attention_balance, sample_balance
from hardsample.metrics.ladders import Ladder
from hardsample.scoring.progress import CountProgress, Display
from hardsample.scoring.store import Attention, Store

UNMASKED = 0.0


@dataclass(frozen=True)
class Item:
    """One completion to run: its tokens, and the rollouts that gave them."""

    tokens: tuple[int, ...]
    realizations: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """A record and those of its completions that run together, at least one."""

    record: Mapping[str, Any]
    items: tuple[Item, ...]


def definition(config: CmabConfig, dtype: str, copy: str | None = None) -> str:
    """What a balance depends on beside the rollout; the bounds and the profile are no part of it.

    Args:
        config: settings of CMAB.
        dtype: of the model.
        copy: fingerprint of the model, where it is not known to be the one that made the rollouts.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in ("bounds", "profile")}
    return json.dumps(settings | {"dtype": dtype} | ({"copy": copy} if copy else {}), sort_keys=True)


@dataclass(frozen=True)
class AttentionPass:
    """What CMAB gave in a run; nothing where it was not asked for or could not be had."""

    samples: dict[str, SampleAttention] | None = None
    """Id → balances; None without any."""
    about: dict[str, Any] | None = None
    """What run.json says of it: settings, completions, and the reason where the model has no attention masses."""
    backends: dict[str, str] = field(default_factory=dict)
    """Which kernels made the attention masses."""
    seconds: dict[str, float] = field(default_factory=dict)


def attend_to(
    ladders: Iterable[Ladder],
    dataset: Dataset,
    engine: AttentionEngine,
    store: Store,
    config: CmabConfig,
    progress: bool,
    copy: str | None = None,
) -> AttentionPass:
    """Compute the balances of the finished samples.

    A model that has no attention masses keeps its PISM scores; the reason is said, and written to run.json.

    Args:
        ladders: of the finished samples.
        dataset: that they stand in.
        engine: with the model that made the completions.
        store: with the rollouts.
        config: settings of CMAB.
        progress: show a bar.
        copy: see `definition`.
    """
    about: dict[str, Any] = {"settings": settings_of(config), "seconds": 0.0, "completions": 0}
    reason = why_not_attention_mass(engine.model)
    if reason:
        engine.notice(f"no attention balance: {reason}")
        return AttentionPass(about=about | {"reason": reason}, seconds={"cmab": 0.0})
    sample_of = {ladder.row: ladder.record["id"] for ladder in ladders if ladder.has_image}
    name = _definition_of(engine, config, copy)
    bar = CountProgress(store.count_unattended(name), "completions", Display("attention", progress))
    began = time.perf_counter()

    def advance(completions: int) -> None:
        about["completions"] += completions
        bar.update(completions)

    with bar:
        attend((dataset[row] for row in sorted(sample_of)), engine, store, config, advance, copy)
    samples = {sample: sample_attention(sample, store, name) for sample in sample_of.values()}
    about["seconds"] = round(time.perf_counter() - began, 2)
    about["without_balance"] = sum(attention.reason is not None for attention in samples.values())
    kernels = chosen(engine.model.get_input_embeddings().weight)
    backends = {"attention_with_mass": kernels["attention_with_mass"]}
    return AttentionPass(samples, about, backends, {"cmab": about["seconds"]})


def pending(
    records: Iterable[Mapping[str, Any]], store: Store, name: str, encode: Callable[[str], list[int]]
) -> Iterator[Sample]:
    """The completions at λ = 0 of records with images that the store has no balance of, equal ones together.

    Args:
        records: the dataset's rows.
        store: with the rollouts.
        name: definition of the balances.
        encode: makes tokens of a completion that a server made, which has none.
    """
    for record in records:
        if not record["images"]:
            continue
        done = {attention.realization for attention in store.attention(name, record["id"])}
        realizations: dict[tuple[int, ...], list[int]] = {}
        for rollout in store.rollouts(record["id"]):
            if rollout.ratio == UNMASKED and rollout.realization not in done:
                tokens = rollout.tokens or encode(rollout.completion)
                realizations.setdefault(tuple(tokens), []).append(rollout.realization)
        if realizations:
            yield Sample(record, tuple(Item(tokens, tuple(own)) for tokens, own in realizations.items()))


def attend(
    records: Iterable[Mapping[str, Any]],
    engine: AttentionEngine,
    store: Store,
    config: CmabConfig,
    advance: Callable[[int], None] = lambda completions: None,
    copy: str | None = None,
) -> None:
    """Run what is pending and put its balances into the store.

    While the model runs one batch, the images of the next are prepared.

    Args:
        records: the dataset's rows, in order.
        engine: with the model that made the completions.
        store: with the rollouts.
        config: settings of CMAB.
        advance: called with the number of stored completions that a batch settled.
        copy: see `definition`.

    Raises:
        AttentionMassError: the model has no attention masses; says why.
        CmabError: it has fewer than three layers, or no layer that the settings name.
    """
    name = _definition_of(engine, config, copy)
    with use_attention_mass(engine.model), preparing_thread(engine.model.device) as preparing:
        samples = pending(records, store, name, encoder(engine.processor))
        if why_not_shared(engine.model):  # a row of a batch is then one completion
            samples = (Sample(sample.record, (item,)) for sample in samples for item in sample.items)

        def start() -> tuple[list[Sample], Future[Prepared]] | None:
            batch = list(islice(samples, engine.batch_size))
            return (batch, preparing.submit(_prepare, engine, batch)) if batch else None

        ahead = start()
        while ahead:
            batch, future = ahead
            prepared = future.result()
            ahead = start()
            settled = [
                replace(balance, realization=realization)
                for item, balance in zip(_items(batch), run_batch(engine, batch, prepared, config), strict=True)
                for realization in item.realizations
            ]
            store.commit_attention(name, settled)
            advance(len(settled))


def run_batch(
    engine: AttentionEngine, batch: Sequence[Sample], prepared: Prepared, config: CmabConfig
) -> list[Attention]:
    """The balances of a batch's completions, in order; those of a sample that was refused say why."""
    failures = {row: failure.reason for row, failure in prepared.failures.items()}
    good = [sample for row, sample in enumerate(batch) if row not in failures]
    ran = iter(_run(engine, good, prepared.inputs, config) if prepared.inputs is not None else ())
    return [
        _none(sample, failures[row]) if row in failures else next(ran)
        for row, sample in enumerate(batch)
        for _ in sample.items
    ]


def _run(
    engine: AttentionEngine, batch: Sequence[Sample], inputs: Mapping[str, Any], config: CmabConfig
) -> list[Attention]:
    """Halve the batch when memory runs out, and find what the model refuses."""
    reason, count = "", len(_items(batch))
    try:
        return _balances(engine, batch, inputs, config)
    except (RuntimeError, IndexError, TypeError, AssertionError) as error:
        reason = engine.refusal(error, max(len(batch), min(count, engine.batch_size)))
    if count == 1:
        return [_none(batch[0], reason)]
    return [balance for half in _halves(batch) for balance in run_batch(engine, half, _prepare(engine, half), config)]


@torch.inference_mode()
def _balances(
    engine: AttentionEngine, batch: Sequence[Sample], inputs: Mapping[str, Any], config: CmabConfig
) -> list[Attention]:
    model, pad = engine.model, engine.pad_token_id
    moved = {key: engine.moved(value) for key, value in inputs.items()}
    tokens = [[item.tokens for item in sample.items] for sample in batch]
    if why_not_shared(model):
        masses = forced_masses(model, moved, [own for (own,) in tokens], config, pad)
    else:
        shared = shared_masses(model, moved, tokens, config, pad, engine.batch_size)
        masses = [of_completion for of_sample in shared for of_completion in of_sample]
    owners = [sample for sample in batch for _ in sample.items]
    return [
        _balance(sample, own, config) if item.tokens else _none(sample, "the completion is empty")
        for sample, item, own in zip(owners, _items(batch), masses, strict=True)
    ]


def _balance(sample: Sample, masses: SampleMasses, config: CmabConfig) -> Attention:
    balance = attention_balance(*masses, config=replace(config, profile=True))
    reason = None if balance.value is not None else "no token sees both image and text"
    profile = list(balance.by_layer or ())
    return Attention(sample.record["id"], UNMASKED, 0, balance.value, profile, balance.left_out, reason)


def _none(sample: Sample, reason: str) -> Attention:
    return Attention(sample.record["id"], UNMASKED, 0, None, [], 0, reason)


def _prepare(engine: AttentionEngine, batch: Sequence[Sample]) -> Prepared:
    return engine.prepare([Request(sample.record, UNMASKED, 0) for sample in batch])


def _items(batch: Iterable[Sample]) -> list[Item]:
    return [item for sample in batch for item in sample.items]


def _halves(batch: Sequence[Sample]) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Half of the samples each; of one sample, half of its completions."""
    middle = len(batch) // 2
    if middle:
        return batch[:middle], batch[middle:]
    (sample,) = batch
    middle = len(sample.items) // 2
    return [replace(sample, items=sample.items[:middle])], [replace(sample, items=sample.items[middle:])]


def encoder(processor: Any) -> Callable[[str], list[int]]:
    """Give what makes a completion's tokens of its text."""
    return lambda text: processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def _definition_of(engine: AttentionEngine, config: CmabConfig, copy: str | None) -> str:
    return definition(config, str(engine.model.dtype).removeprefix("torch."), copy)


def sample_attention(sample: str, store: Store, name: str) -> SampleAttention:
    """What the store's balances by a definition say of a sample; wrong completions apart."""
    rows = store.attention(name, sample)
    if not rows:
        return SampleAttention()
    grades = {k: grade for ratio, k, grade in store.grades(sample) if ratio == UNMASKED}
    correct = [grades[row.realization] for row in rows]
    values = [row.balance for row in rows]
    profiles = [row.profile for row, right in zip(rows, correct, strict=True) if right and row.profile]
    return SampleAttention(
        sample_balance(values, correct),
        sample_balance(values, [not right for right in correct]),
        tuple(map(_geometric_mean, zip(*profiles, strict=True))),
        next((row.reason for row in rows if row.reason), None),
    )


def _geometric_mean(values: Iterable[float | None]) -> float | None:
    logs = [log(max(value, 1e-12)) for value in values if value is not None]
    return exp(float(np.mean(logs))) if logs else None


def settings_of(config: CmabConfig) -> dict[str, Any]:
    """The settings as run.json writes them."""
    return {key: value for key, value in asdict(config).items() if key != "profile"}


__all__ = [
    "AttentionPass",
    "attend",
    "attend_to",
    "definition",
    "pending",
    "sample_attention",
    "settings_of",
    "teacher_forced",
]
