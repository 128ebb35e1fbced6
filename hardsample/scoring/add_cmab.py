"""CMAB for a finished run: `hardsample score --metric cmab --output DIR --model M`, with a copy of the model here.

A server shows no attention, so what it completed is run through a local copy once more. It told no token ids: they are
those that the copy's tokenizer makes of the text, which may be cut otherwise than the server cut them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from hardsample.data.digests import is_old
from hardsample.data.loading import load
from hardsample.engines.results import EngineError
from hardsample.engines.transformers import load_model, load_processor, model_fingerprint
from hardsample.metrics.cmab import CmabConfig
from hardsample.metrics.ladders import Ladder
from hardsample.scoring.attention_pass import attend_to, attention_backend
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.matching import check_finished, scored_records
from hardsample.scoring.output import Scores, write_run, write_scores
from hardsample.scoring.score import demo_model, make_engine
from hardsample.scoring.store import Store
from hardsample.scoring.subsets import source_records


def attend_run(
    directory: str | Path,
    model: str | None = None,
    cmab: CmabConfig | None = None,
    *,
    data: Dataset | None = None,
    batch_size: int = ScoringConfig.batch_size,
    device: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> Scores:
    """Compute the attention balances of a finished run's completions at λ = 0; resumes where it was stopped.

    Args:
        directory: output folder of the run.
        model: folder or hub id of a copy of the model that made the completions; default the run's own, if it ran here.
        cmab: settings of CMAB.
        data: the records, for a run that scored a `Dataset` from memory.
        batch_size: completions that are run at once.
        device: torch device.
        dtype: of the copy; default as for a new run.
        trust_remote_code: run code that the checkpoint brings.
        progress: show a bar.

    Returns:
        The scores with CMAB's columns, also in `directory`.

    Raises:
        OutputError: the folder holds no finished run, or its data is gone.
        ChangedError: a record is not what was scored under its id.
        EngineError: the model cannot be loaded, or has no attention masses.
    """
    scores, cmab = Scores(directory), cmab or CmabConfig()
    check_finished(scores)
    run, settings = scores.run, scores.run["settings"]
    if model is None and settings["engine"] != "transformers":
        raise EngineError(f"a server made these completions: give --model, a copy of {run['model']!r} to load here")
    name = demo_model(model or run["model"])
    ids = list(scores.table["id"])
    records = source_records(scores, ids, decode=False) if data is None else _in_memory(scores, data, ids)
    config = ScoringConfig(
        **{key: settings[key] for key in ("seed", "temperature", "max_new_tokens", "mask_kind", "max_pixels")},
        batch_size=batch_size,
    )
    processor = load_processor(name, trust_remote_code)
    engine = make_engine(load_model(name, device, dtype, None, trust_remote_code), processor, config)
    search = scores.config()
    with Store(scores.directory) as store:
        fingerprint = model_fingerprint(name, getattr(engine.model.config, "_commit_hash", None))
        copy = None if fingerprint == store.settings().get("model") else fingerprint
        ladders = [
            Ladder(row, record, search, store.grades(record["id"]), store.unanswered(record["id"]))
            for row, record in enumerate(records.select_columns(["id", "ability", "images"]))
        ]
        attention, told = attend_to(ladders, records, engine, store, cmab, progress, copy)
        if attention is None:
            raise EngineError(f"{name} gives no attention balance: {told['reason']}")
        digests = {sample: digest for sample, digest in store.digests().items() if not is_old(digest)}
        write_scores(scores.directory, ladders, search, attention, cmab.bounds, digests)
        content: dict[str, Any] = run | {
            "cmab": told | {"model": model or run["model"]},
            "settings": settings | {"metric": ["pism", "cmab"]},
            "seconds": run["seconds"] | {"cmab": told["seconds"]},
            "backends": run["backends"] | attention_backend(engine, told),
        }
        write_run(scores.directory, content)
    return Scores(directory)


def _in_memory(scores: Scores, data: Dataset, ids: list[str]) -> Dataset:
    """The records of a run that scored a `Dataset`, read from it as scoring reads them."""
    settings = scores.run["settings"]
    loaded = load(
        data,
        grader=settings["grader"],
        max_pixels=settings["max_pixels"],
        options_template=scores.options_template,
    )
    return scored_records(scores, loaded.dataset, ids, "the dataset")
