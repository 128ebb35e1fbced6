"""One sample of a finished run in one figure: image, question, completions, mask ladder, attention by token.

The attention of one completion is recomputed, one layer at a time, from the queries, the keys and the log-sum-exp of
the model's own forward, so at most completion rows × prompt columns is held.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hardsample.attention.interface import collect_attention_mass, use_attention_mass
from hardsample.attention.teacher_forcing import completion_type, teacher_forced
from hardsample.data.images import open_image
from hardsample.engines.protocol import AttentionEngine, Request
from hardsample.engines.results import Prepared
from hardsample.metrics.cmab import CmabConfig, attention_balance
from hardsample.metrics.finishes import FINISHES
from hardsample.metrics.strata import UNFINISHED
from hardsample.scoring.attention_pass import UNMASKED, encoder
from hardsample.scoring.matching import check_finished
from hardsample.scoring.output import OutputError, Scores
from hardsample.scoring.store import Rollout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_IMAGES = 3
MOST_COMPLETIONS = 6
MOST_TOKENS = 70


@dataclass(frozen=True)
class TokenAttention:
    """Attention of one completion, averaged over its tokens, heads and the layers that count.

    Attributes:
        grids: for each image the attention of its tokens, (rows, columns); None if the grid is unknown.
        tokens: the prompt's text tokens, as text.
        weights: the attention of each.
        image: share of all attention on image tokens.
        text: share on text tokens of the prompt.
        balance: ρ̄ of this completion; None if it has none.
    """

    grids: list[Any]
    tokens: list[str]
    weights: list[float]
    image: float
    text: float
    balance: float | None


@torch.inference_mode()
def token_attention(
    engine: AttentionEngine, record: Mapping[str, Any], tokens: Sequence[int], config: CmabConfig
) -> TokenAttention:
    """Run one completion through the model and return where its attention went.

    Args:
        engine: with the model.
        record: the sample.
        tokens: the completion, without the end-of-sequence token; at least one.
        config: settings of CMAB.

    Raises:
        OutputError: the processor rejects the record.
        AttentionMassError: the model has no attention masses.
    """
    prepared: Prepared = engine.prepare([Request(record, UNMASKED, 0)])
    if prepared.inputs is None:
        raise OutputError(f"sample {record['id']!r} cannot be prepared: {prepared.failures[0].reason}")
    fed, completion = teacher_forced(prepared.inputs, [tokens], engine.pad_token_id, completion_type(engine.model))
    fed = {name: engine.moved(value) for name, value in fed.items()}
    with (
        use_attention_mass(engine.model),
        collect_attention_mass(
            engine.model,
            fed["input_ids"],
            completion.to(engine.model.device),
            fed.get("attention_mask"),
            text=str(config.text),
            per_head=config.heads == "each",
            columns=True,
            ends=(),
        ) as collector,
    ):
        engine.model(**fed, use_cache=False, logits_to_keep=1)
    masses = collector.masses
    assert masses.columns is not None
    kept = masses.columns[1:-1] if len(masses.columns) > 2 else masses.columns
    weights: Float[Tensor, " position"] = kept.mean((0, 1))
    ids: Int[Tensor, " position"] = fed["input_ids"][0, : len(weights)].cpu()
    attended = fed["attention_mask"][0, : len(weights)].bool().cpu()
    image = (ids == image_token_of(engine.model)) & attended
    text = attended & ~image
    return TokenAttention(
        grids=image_grids(weights, image, prepared.inputs, engine.processor),
        tokens=[engine.processor.tokenizer.decode([token]) for token in ids[text].tolist()],
        weights=weights[text].tolist(),
        image=float(weights[image].sum()),
        text=float(weights[text].sum()),
        balance=attention_balance(*masses.sample(0), config=config).value,
    )


def image_token_of(model: Any) -> int:
    """Return the id of a model's image tokens."""
    names = ("image_token_id", "image_token_index")
    return next(value for name in names if (value := getattr(model.config, name, None)) is not None)


def image_grids(
    weights: Float[Tensor, " position"], image: Tensor, inputs: Mapping[str, Any], processor: Any
) -> list[Any]:
    """Split the attention of image tokens into images, each in its grid of rows and columns.

    Args:
        weights: attention of each position of the prompt.
        image: bool, which positions are image tokens.
        inputs: the processor's output; `image_grid_thw` holds the grids of the Qwen-VL family.
        processor: its `merge_size` applies to these grids.

    Returns:
        One array (rows, columns) for each run of image tokens; None if the grid is unknown (not a square number, or
        several views of an image).
    """
    runs = [[index for index, _ in group] for flag, group in groupby(enumerate(image.tolist()), lambda x: x[1]) if flag]
    known: list[tuple[int, int]] = []
    if "image_grid_thw" in inputs:
        merge = getattr(processor.image_processor, "merge_size", 2)
        known = [(rows // merge, columns // merge) for _, rows, columns in inputs["image_grid_thw"].tolist()]
    grids: list[Any] = []
    for index, run in enumerate(runs):
        side = round(len(run) ** 0.5)
        shape = known[index] if index < len(known) else (side, side)
        grids.append(weights[run].view(shape).numpy() if shape[0] * shape[1] == len(run) else None)
    return grids


def explain_figure(
    record: Mapping[str, Any],
    scores: Scores,
    rollouts: Sequence[Rollout],
    attention: TokenAttention | None,
    explained: Rollout | None,
) -> Figure:
    """Draw everything about one sample in one figure.

    Args:
        record: the sample.
        scores: the run.
        rollouts: of the sample.
        attention: of one completion, or None if there is none.
        explained: the rollout whose attention it is.
    """
    from hardsample.report.parts.figures import image_with_attention, ladder, new_figure, paragraph, token_weights

    row = scores.table[list(scores.table["id"]).index(record["id"])]
    figure = new_figure(13, 8)
    images = [open_image(ref) for ref in record["images"][:MOST_IMAGES]]
    halves: Any = figure.subfigures(2, 1, height_ratios=[1.15, 1])
    upper, lower = halves
    panels = upper.subplots(1, max(1, len(images)) + 1, squeeze=False)[0]
    grids = [*(attention.grids if attention else []), *[None] * len(images)]
    for axes, image, grid in zip(panels, images, grids, strict=False):
        note = "attention over image tokens" if grid is not None else "grid of image tokens unknown: no overlay"
        image_with_attention(axes, image, grid, note)
    if not images:
        paragraph(panels[0], "(no image)")
    paragraph(panels[-1], _story(record, row, rollouts), 62)
    left, right = lower.subplots(1, 2)
    ladder(left, scores.config().ratios, row["successes"], row["attempts"], scores.config().tau)
    left.set_title(_verdict(row), fontsize=10)
    if attention is None:
        paragraph(right, "no completion at λ = 0 with an attention balance")
        return figure
    share = f"{attention.image:.0%} of attention on the image, {attention.text:.0%} on the text"
    balance = "" if attention.balance is None else f"; ρ̄ = {attention.balance:.3g}"
    answer = explained.completion if explained else ""
    right.set_title(f"while generating {answer[:40]!r}: {share}{balance}", fontsize=10)
    token_weights(right, attention.tokens[-MOST_TOKENS:], attention.weights[-MOST_TOKENS:])
    return figure


def _story(record: Mapping[str, Any], row: Mapping[str, Any], rollouts: Sequence[Rollout]) -> str:
    """Return question, gold answer, and the completions at λ = 0 with their grades."""
    question = " ".join(
        block["text"] or "" for message in record["prompt"] for block in message["content"] if block["type"] == "text"
    )
    lines = [f"sample {record['id']}", f"ability {row['ability'] or '—'}", "", f"question: {question[:600]}"]
    lines += [f"solution: {str(record['solution'])[:200]}", "", "completions at λ = 0:"]
    unmasked = [rollout for rollout in rollouts if rollout.ratio == UNMASKED]
    unmasked.sort(key=lambda rollout: not rollout.grade)  # right ones first: the attention shown is of one of them
    for rollout in unmasked[:MOST_COMPLETIONS]:
        lines.append(f"{'✓' if rollout.grade else '✗'} {rollout.completion[:200]!r}{_describe_finish(rollout)}")
    if len(unmasked) > MOST_COMPLETIONS:
        lines.append(f"… and {len(unmasked) - MOST_COMPLETIONS} more")
    return "\n".join(lines)


def _verdict(row: Mapping[str, Any]) -> str:
    """Describe stratum and λ*."""
    if row["pism_stratum"] == UNFINISHED:
        return f"{UNFINISHED}: no completion at λ = 0 has an answer"
    threshold = "no ratio fails" if row["failure_threshold"] is None else f"λ* = {row['failure_threshold']:g}"
    return f"{row['pism_stratum'] or 'no stratum'}: {threshold}"


def _describe_finish(rollout: Rollout) -> str:
    return "" if rollout.finish in (None, "stop", "empty") else f" ({FINISHES[rollout.finish]})"


def rollout_to_explain(rollouts: Sequence[Rollout]) -> Rollout | None:
    """Return the rollout at λ = 0 whose attention is shown: the first correct one, else the first with any tokens."""
    candidates = [rollout for rollout in rollouts if rollout.ratio == UNMASKED and rollout.tokens]
    return next((rollout for rollout in candidates if rollout.grade), candidates[0] if candidates else None)


def file_name(sample: str) -> str:
    """Return a valid file name for a sample, whatever its id contains."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", sample).strip("._")[:80]
    digest = hashlib.blake2b(sample.encode(), digest_size=4).hexdigest()
    return f"{name}.png" if name and name == sample else f"{name or 'sample'}-{digest}.png"


def explain(directory: str | Path, sample: str, *, model: str | None = None, device: str | None = None) -> Path:
    """Draw one sample of a finished run into DIR/explain.

    Args:
        directory: the output folder of the run.
        sample: id of the sample.
        model: current location of the model, if not the one in run.json.
        device: torch device.

    Returns:
        The PNG's path.

    Raises:
        OutputError: there is no such sample, or the data is no longer where it was.
        ChangedError: the record is not what was scored under its id.
        EngineError: the model cannot be loaded.
        FiguresError: matplotlib is not installed.
    """
    from hardsample.attention.interface import AttentionMassError
    from hardsample.report.parts.figures import new_figure
    from hardsample.scoring.add_cmab import reopened_engine
    from hardsample.scoring.config import ScoringConfig
    from hardsample.scoring.store import Store
    from hardsample.scoring.subsets import source_records

    new_figure(1, 1)  # before anything is loaded
    scores = Scores(directory)
    check_finished(scores)
    ids = list(scores.table["id"])
    if sample not in ids:
        raise OutputError(f"{directory} has no sample {sample!r}: its ids look like {ids[0]!r}, see scores.parquet")
    record = source_records(scores, [sample], decode=False)[0]
    with Store(scores.directory) as store:
        rollouts = list(store.rollouts(sample))
    explained = rollout_to_explain(rollouts)
    attention = None
    if explained and record["images"]:
        trusted = bool(scores.run["settings"].get("trust_remote_code"))
        config = ScoringConfig(device=device, trust_remote_code=trusted)
        try:
            with reopened_engine(scores, model, config) as engine:
                tokens = explained.tokens or encoder(engine.processor)(explained.completion)
                attention = token_attention(engine, record, tokens, scores.cmab_config())
        except AttentionMassError as error:
            print(f"no attention: {error}")
    figure = explain_figure(record, scores, rollouts, attention, explained)
    path = scores.directory / "explain" / file_name(sample)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


__all__ = ["TokenAttention", "explain", "explain_figure", "token_attention"]
