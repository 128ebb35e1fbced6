"""From a weight for each stratum to the weight of each sample, by one labelling or by two.

By PISM or by CMAB a sample weighs what its stratum weighs. By both, PISM and CMAB are two independent votes on the same
sample: it weighs the mean of its two strata's weights, and where only one metric knows it, that one's alone. So five
weights are enough; a weight for each of the 25 cells is nothing that anyone could choose.

Where too few samples for a generation batch have any weight, the nearest strata are opened, see `widen`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer

from hardsample.trainer.selection.strata import MEDIUM, NAMES, UNSCORED

STRATIFY_BY = ("pism", "cmab", "both")


def widen(
    weights: Sequence[float], counts: Sequence[int], batch: int, of: str = ""
) -> tuple[Float[np.ndarray, "5"], str | None]:
    """Open the nearest strata where those with weight hold fewer samples than a generation batch.

    Strata are opened by their distance from one with weight (in the order easy, medium, hard, unsolved), the easier
    first, unscored last. Together they weigh no more than the missing samples would have: a few wanted samples are not
    drowned by many others.

    Args:
        weights: of a sample of each stratum, in the order of `strata.NAMES`.
        counts: samples in each stratum.
        batch: prompts of a generation batch.
        of: name of the metric, for the note.

    Returns:
        (weights, note): the new weights, and which strata were opened, for a warning; None if none.
    """
    table, size = np.array(weights, dtype=np.float64), np.array(counts)
    wanted = np.flatnonzero(table > 0)
    held = int(size[wanted].sum())
    if held >= batch:
        return table, None
    usual = float((table * size).sum() / held) if held else 1.0
    real = [int(code) for code in wanted if code != UNSCORED] or [MEDIUM]
    closed = [code for code in range(len(NAMES)) if table[code] == 0]
    closed.sort(key=lambda code: (code == UNSCORED, min(abs(code - open_code) for open_code in real), code))
    missing, opened = batch - held, []
    for code in closed:
        if missing > 0 and size[code]:
            table[code] = usual * min(1.0, missing / size[code])
            missing -= size[code]
            opened.append(NAMES[code])
    if not opened:
        return table, None
    names = "+".join(NAMES[code] for code in wanted)
    return table, (
        f"{of}{names or 'no stratum'} has weight and holds {held or 'no'} samples, fewer than the {batch} prompts of a "
        f"generation batch: {'+'.join(opened)} was opened"
    )


def widen_both(
    weights: Sequence[float], cells: Integer[np.ndarray, "5 5"], batch: int
) -> tuple[Float[np.ndarray, "5"], Float[np.ndarray, "5"], str | None]:
    """Open strata of both metrics where samples with weight are fewer than a generation batch.

    A metric's strata are opened by the samples that it knows; those that neither knows count with PISM's `unscored`. So
    once both have been widened, every batch is full that the data can fill.

    Args:
        weights: of a sample of each stratum, in the order of `strata.NAMES`.
        cells: samples in each PISM (row) and CMAB (column) stratum.
        batch: prompts of a generation batch.

    Returns:
        (PISM weights, CMAB weights, note).
    """
    table = np.array(weights, dtype=np.float64)
    values = both(table, table, *np.indices(cells.shape))
    if cells[values > 0].sum() >= batch:
        return table, table, None
    known_pism = np.append(cells[:UNSCORED].sum(axis=1), cells[UNSCORED, UNSCORED])
    known_cmab = np.append(cells[:, :UNSCORED].sum(axis=0), 0)
    pism, pism_note = widen(weights, known_pism.tolist(), batch, "PISM: ")
    cmab, cmab_note = widen(weights, known_cmab.tolist(), batch, "CMAB: ")
    return pism, cmab, "; ".join(note for note in (pism_note, cmab_note) if note) or None


def both(
    pism_weights: Float[np.ndarray, "5"],
    cmab_weights: Float[np.ndarray, "5"],
    pism: Integer[np.ndarray, "*rows"],
    cmab: Integer[np.ndarray, "*rows"],
) -> Float[np.ndarray, "*rows"]:
    """Return the mean of the weights of two strata, or the weight of the one that is known.

    Args:
        pism_weights: of the PISM strata, in the order of `strata.NAMES`; its `unscored` is of those that neither knows.
        cmab_weights: of the CMAB strata.
        pism: codes of the PISM strata.
        cmab: codes of the CMAB strata.
    """
    first, second = pism_weights[pism], cmab_weights[cmab]
    one = np.where(cmab == UNSCORED, first, second)
    return np.where((pism == UNSCORED) | (cmab == UNSCORED), one, (first + second) / 2)


def label_weights(
    weights: Sequence[float],
    stratify_by: str,
    pism: Integer[np.ndarray, "rows"],
    cmab: Integer[np.ndarray, "rows"] | None,
    counts: Sequence[int],
    cells: Integer[np.ndarray, "5 5"] | None,
    batch: int,
) -> tuple[Float[np.ndarray, "rows"], Bool[np.ndarray, "rows"], str | None]:
    """Return the weight of each sample by its stratum or strata, widened where too few have weight.

    Args:
        weights: of a sample of each stratum, in the order of `strata.NAMES`.
        stratify_by: one of `STRATIFY_BY`.
        pism: (rows,) codes of the PISM strata.
        cmab: (rows,) codes of the CMAB strata; needed unless stratify_by is pism.
        counts: samples in each PISM stratum.
        cells: samples in each PISM (row) and CMAB (column) stratum; needed likewise.
        batch: prompts of a generation batch.

    Returns:
        (weights, unscored, note): which samples have no stratum of a metric that counts, and what was opened.
    """
    if stratify_by == "pism":
        table, note = widen(weights, counts, batch)
        return table[pism], pism == UNSCORED, note
    assert cmab is not None and cells is not None, "there are CMAB strata where they count"
    if stratify_by == "cmab":
        table, note = widen(weights, cells.sum(axis=0).tolist(), batch)
        return table[cmab], cmab == UNSCORED, note
    pism_table, cmab_table, note = widen_both(weights, cells, batch)
    return both(pism_table, cmab_table, pism, cmab), (pism == UNSCORED) & (cmab == UNSCORED), note
