"""CMAB as a job: the stored completions at λ = 0, run through the model once more, no new generation.

A sample's completions share one run of its prompt where the model's cache allows it (`attention.shared_prefill`), and
equal ones are run once. A batch's balances are one transaction in the store, so a run that was stopped resumes, and
balances of another variant stay beside them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
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
from hardsample.engines.preparing import Request, preparing_thread
from hardsample.engines.transformers import Prepared, TransformersEngine
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


def attend_to(
    ladders: Iterable[Ladder],
    dataset: Dataset,
    engine: TransformersEngine,
    store: Store,
    config: CmabConfig,
    progress: bool,
    copy: str | None = None,
) -> tuple[dict[str, SampleAttention] | None, dict[str, Any]]:
    """The balances of the finished samples, and what run.json says of CMAB.

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
    told: dict[str, Any] = {"settings": settings_of(config), "seconds": 0.0, "completions": 0}
    reason = why_not_attention_mass(engine.model)
    if reason:
        engine.notice(f"no attention balance: {reason}")
        return None, told | {"reason": reason}
    found = {ladder.row: ladder.record["id"] for ladder in ladders if ladder.has_image}
    name = _definition_of(engine, config, copy)
    bar = CountProgress(store.count_unattended(name), "completions", Display("attention", progress))
    began = time.perf_counter()

    def advance(completions: int) -> None:
        told["completions"] += completions
        bar.update(completions)

    with bar:
        attend((dataset[row] for row in sorted(found)), engine, store, config, advance, copy)
    attention = {sample: sample_attention(sample, store, name) for sample in found.values()}
    told["seconds"] = round(time.perf_counter() - began, 2)
    told["without_balance"] = sum(one.reason is not None for one in attention.values())
    return attention, told


def attention_backend(engine: Any, told: Mapping[str, Any] | None) -> dict[str, str]:
    """Which kernels made the attention masses, for run.json; nothing where there are none."""
    if told is None or told.get("reason"):
        return {}
    return {"attention_with_mass": chosen(engine.model.get_input_embeddings().weight)["attention_with_mass"]}


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
        done = {one.realization for one in store.attention(name, record["id"])}
        found: dict[tuple[int, ...], list[int]] = {}
        for rollout in store.rollouts(record["id"]):
            if rollout.ratio == UNMASKED and rollout.realization not in done:
                tokens = rollout.tokens or encode(rollout.completion)
                found.setdefault(tuple(tokens), []).append(rollout.realization)
        if found:
            yield Sample(record, tuple(Item(tokens, tuple(of)) for tokens, of in found.items()))


def attend(
    records: Iterable[Mapping[str, Any]],
    engine: TransformersEngine,
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
        advance: is told how many stored completions a batch settled.
        copy: see `definition`.

    Raises:
        AttentionMassError: the model has no attention masses; says why.
        CmabError: it has fewer than three layers, or no layer that the settings name.
    """
    name = _definition_of(engine, config, copy)
    with use_attention_mass(engine.model), preparing_thread(engine.model.device) as preparing:
        samples = pending(records, store, name, encoder(engine.processor))
        if why_not_shared(engine.model):  # a row of a batch is then one completion
            samples = (Sample(one.record, (item,)) for one in samples for item in one.items)

        def start() -> tuple[list[Sample], Future[Prepared]] | None:
            batch = list(islice(samples, engine.batch_size))
            return (batch, preparing.submit(_prepare, engine, batch)) if batch else None

        ahead = start()
        while ahead:
            batch, future = ahead
            prepared = future.result()
            ahead = start()
            settled = [
                replace(found, realization=realization)
                for item, found in zip(_items(batch), run_batch(engine, batch, prepared, config), strict=True)
                for realization in item.realizations
            ]
            store.commit_attention(name, settled)
            advance(len(settled))


def run_batch(
    engine: TransformersEngine, batch: Sequence[Sample], prepared: Prepared, config: CmabConfig
) -> list[Attention]:
    """The balances of a batch's completions, in order; those of a sample that was refused say why."""
    failures = {place: failure.reason for place, failure in prepared.failures.items()}
    good = [one for place, one in enumerate(batch) if place not in failures]
    ran = iter(_run(engine, good, prepared.inputs, config) if prepared.inputs is not None else ())
    return [
        _none(one, failures[place]) if place in failures else next(ran)
        for place, one in enumerate(batch)
        for _ in one.items
    ]


def _run(
    engine: TransformersEngine, batch: Sequence[Sample], inputs: Mapping[str, Any], config: CmabConfig
) -> list[Attention]:
    """Halves the batch when memory runs out, and finds what the model refuses."""
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
    engine: TransformersEngine, batch: Sequence[Sample], inputs: Mapping[str, Any], config: CmabConfig
) -> list[Attention]:
    model, pad = engine.model, engine.pad_token_id
    moved = {key: engine.moved(value) for key, value in inputs.items()}
    tokens = [[item.tokens for item in one.items] for one in batch]
    if why_not_shared(model):
        masses = forced_masses(model, moved, [own for (own,) in tokens], config, pad)
    else:
        shared = shared_masses(model, moved, tokens, config, pad, engine.batch_size)
        masses = [one for of_sample in shared for one in of_sample]
    owners = [one for one in batch for _ in one.items]
    return [
        _balance(one, found, config) if item.tokens else _none(one, "the completion is empty")
        for one, item, found in zip(owners, _items(batch), masses, strict=True)
    ]


def _balance(sample: Sample, masses: SampleMasses, config: CmabConfig) -> Attention:
    balance = attention_balance(*masses, config=replace(config, profile=True))
    reason = None if balance.value is not None else "no token sees both image and text"
    profile = list(balance.by_layer or ())
    return Attention(sample.record["id"], UNMASKED, 0, balance.value, profile, balance.left_out, reason)


def _none(sample: Sample, reason: str) -> Attention:
    return Attention(sample.record["id"], UNMASKED, 0, None, [], 0, reason)


def _prepare(engine: TransformersEngine, batch: Sequence[Sample]) -> Prepared:
    return engine.prepare([Request(one.record, UNMASKED, 0) for one in batch])


def _items(batch: Iterable[Sample]) -> list[Item]:
    return [item for one in batch for item in one.items]


def _halves(batch: Sequence[Sample]) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Half of the samples each; of one sample, half of its completions."""
    middle = len(batch) // 2
    if middle:
        return batch[:middle], batch[middle:]
    (one,) = batch
    middle = len(one.items) // 2
    return [replace(one, items=one.items[:middle])], [replace(one, items=one.items[middle:])]


def encoder(processor: Any) -> Callable[[str], list[int]]:
    """What makes a completion's tokens of its text."""
    return lambda text: processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def _definition_of(engine: TransformersEngine, config: CmabConfig, copy: str | None) -> str:
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
    found = [log(max(value, 1e-12)) for value in values if value is not None]
    return exp(float(np.mean(found))) if found else None


def settings_of(config: CmabConfig) -> dict[str, Any]:
    """The settings as run.json writes them."""
    return {key: value for key, value in asdict(config).items() if key != "profile"}


__all__ = [
    "attend",
    "attend_to",
    "attention_backend",
    "definition",
    "pending",
    "sample_attention",
    "settings_of",
    "teacher_forced",
]
