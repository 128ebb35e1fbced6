"""CMAB as a job: the stored completions at λ = 0, one teacher-forced forward each, no new generation.

Equal completions of a sample are run once. A batch's balances are one transaction in the store, so a run that was
stopped goes on, and balances of another variant stay beside them.
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
from torch import Tensor

from hardsample.attention import collect_attention_mass, use_attention_mass
from hardsample.cmab import Balance, CmabConfig, attention_balance, sample_balance
from hardsample.engines.preparing import Request, preparing_thread
from hardsample.engines.transformers import Prepared, TransformersEngine
from hardsample.store import Attention, Store

UNMASKED = 0.0


@dataclass(frozen=True)
class Item:
    """One completion to run: a record, its tokens, and the rollouts that gave them."""

    record: Mapping[str, Any]
    tokens: tuple[int, ...]
    realizations: tuple[int, ...]


@dataclass(frozen=True)
class SampleAttention:
    """What the completions of a sample at λ = 0 say.

    Attributes:
        balance: ρ̄, the mean over its correct completions; None if none is correct or none has a balance.
        wrong: the same over its wrong completions.
        profile: ρ of each layer, geometric mean over its correct completions; empty if there is none.
        reason: why a completion has no balance, if one has none.
    """

    balance: float | None = None
    wrong: float | None = None
    profile: tuple[float | None, ...] = ()
    reason: str | None = None


def definition(config: CmabConfig, dtype: str) -> str:
    """What a balance depends on beside the rollout; the bounds and the profile are no part of it."""
    settings = {name: value for name, value in asdict(config).items() if name not in ("bounds", "profile")}
    return json.dumps(settings | {"dtype": dtype}, sort_keys=True)


def pending(records: Iterable[Mapping[str, Any]], store: Store, name: str) -> Iterator[Item]:
    """The completions at λ = 0 of records with images that the store has no balance of, equal ones together."""
    for record in records:
        if not record["images"]:
            continue
        done = {one.realization for one in store.attention(name, record["id"])}
        found: dict[tuple[int, ...], list[int]] = {}
        for rollout in store.rollouts(record["id"]):
            if rollout.ratio == UNMASKED and rollout.realization not in done:
                found.setdefault(tuple(rollout.tokens), []).append(rollout.realization)
        for tokens, realizations in found.items():
            yield Item(record, tokens, tuple(realizations))


def attend(
    records: Iterable[Mapping[str, Any]],
    engine: TransformersEngine,
    store: Store,
    config: CmabConfig,
    advance: Callable[[int], None] = lambda completions: None,
) -> float:
    """Run what is pending and put its balances into the store.

    While the model runs one batch, the pictures of the next are prepared.

    Args:
        records: the dataset's rows, in order.
        engine: with the model that made the completions.
        store: with the rollouts.
        config: settings of CMAB.
        advance: is told how many stored completions a batch settled.

    Returns:
        Seconds in the model.

    Raises:
        AttentionMassError: the model has no attention masses; says why.
        CmabError: it has fewer than three layers, or no layer that the settings name.
    """
    name = definition(config, str(engine.model.dtype).removeprefix("torch."))
    items = pending(records, store, name)
    seconds = 0.0
    with use_attention_mass(engine.model), preparing_thread(engine.model.device) as preparing:

        def start() -> tuple[list[Item], Future[Prepared]] | None:
            batch = list(islice(items, engine.batch_size))
            requests = [Request(item.record, UNMASKED, 0) for item in batch]
            return (batch, preparing.submit(engine.prepare, requests)) if batch else None

        ahead = start()
        while ahead:
            batch, future = ahead
            prepared = future.result()
            ahead = start()
            began = time.perf_counter()
            balances = run_batch(engine, batch, prepared, config)
            seconds += time.perf_counter() - began
            store.commit_attention(
                name,
                (
                    replace(found, realization=realization)
                    for item, found in zip(batch, balances, strict=True)
                    for realization in item.realizations
                ),
            )
            advance(sum(len(item.realizations) for item in batch))
    return seconds


def run_batch(
    engine: TransformersEngine, batch: Sequence[Item], prepared: Prepared, config: CmabConfig
) -> list[Attention]:
    """The balances of a batch, in order; halves the batch when memory runs out, and finds what the model refuses."""
    places = [place for place in range(len(batch)) if place not in prepared.failures and batch[place].tokens]
    found = {place: _none(batch[place], failure.reason) for place, failure in prepared.failures.items()}
    found |= {place: _none(item, "the completion is empty") for place, item in enumerate(batch) if not item.tokens}
    if len(places) < len(batch):
        if places:
            kept = [batch[place] for place in places]
            again = engine.prepare([Request(item.record, UNMASKED, 0) for item in kept])
            found |= zip(places, run_batch(engine, kept, again, config), strict=True)
        return [found[place] for place in range(len(batch))]
    assert prepared.inputs is not None
    reason = ""
    try:
        return _forward(engine, batch, prepared.inputs, config)
    except (RuntimeError, IndexError, TypeError, AssertionError) as error:
        reason = engine.refusal(error, len(batch))
    if len(batch) == 1:
        return [_none(batch[0], reason)]
    middle = len(batch) // 2
    halves = []
    for half in (batch[:middle], batch[middle:]):
        again = engine.prepare([Request(item.record, UNMASKED, 0) for item in half])
        halves += run_batch(engine, half, again, config)
    return halves


@torch.inference_mode()
def _forward(
    engine: TransformersEngine, batch: Sequence[Item], inputs: Mapping[str, Any], config: CmabConfig
) -> list[Attention]:
    model = engine.model
    fed, completion = teacher_forced(inputs, [item.tokens for item in batch], engine.pad_token_id)
    fed = {key: engine.moved(value) for key, value in fed.items()}
    with collect_attention_mass(
        model,
        fed["input_ids"],
        completion.to(model.device),
        fed.get("attention_mask"),
        text=str(config.text),
        per_head=config.heads == "each",
        ends=(),
    ) as collector:
        model(**fed, use_cache=False, logits_to_keep=1)
    masses = collector.masses
    kept = replace(config, profile=True)
    return [_of_balance(item, attention_balance(*masses.sample(row), config=kept)) for row, item in enumerate(batch)]


def teacher_forced(
    inputs: Mapping[str, Any], completions: Sequence[Sequence[int]], pad_token_id: int
) -> tuple[dict[str, Any], Tensor]:
    """Appends completions to the prompts of a processor's output.

    Args:
        inputs: with `input_ids` and, beside pictures, tensors of the same shape (attention mask, token types).
        completions: token ids, without end-of-sequence.
        pad_token_id: fills the shorter ones, on the right.

    Returns:
        The inputs with prompt + completion, and the completion mask, bool (batch, longest completion).
    """
    ids: Tensor = inputs["input_ids"]
    longest = max(len(tokens) for tokens in completions)
    added = torch.full((len(completions), longest), pad_token_id, dtype=ids.dtype)
    mask = torch.zeros((len(completions), longest), dtype=torch.bool)
    for row, tokens in enumerate(completions):
        added[row, : len(tokens)] = torch.tensor(tokens, dtype=ids.dtype)
        mask[row, : len(tokens)] = True
    fed = dict(inputs)
    for name, value in inputs.items():
        if not isinstance(value, Tensor) or value.shape != ids.shape:
            continue
        # token types: 0, text, as generate gives to what it generates
        tail = {"input_ids": added, "attention_mask": mask}.get(name, torch.zeros_like(added))
        fed[name] = torch.cat([value, tail.to(value.dtype).to(value.device)], 1)
    fed.setdefault("attention_mask", torch.cat([torch.ones_like(ids), mask.to(ids)], 1))
    return fed, mask


def _of_balance(item: Item, balance: Balance) -> Attention:
    reason = None if balance.value is not None else "no token sees both image and text"
    return Attention(
        item.record["id"], UNMASKED, 0, balance.value, list(balance.by_layer or ()), balance.left_out, reason
    )


def _none(item: Item, reason: str) -> Attention:
    return Attention(item.record["id"], UNMASKED, 0, None, [], 0, reason)


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


__all__ = ["SampleAttention", "attend", "definition", "pending", "sample_attention", "settings_of", "teacher_forced"]
