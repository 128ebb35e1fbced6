"""Write subsets of a scored folder in the format of a trainer; what does not fit is left out, counted and listed."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hardsample import __version__
from hardsample.data.formats import CANONICAL_COLUMNS
from hardsample.data.images import file_bytes
from hardsample.data.loading import Rejection
from hardsample.exporting import rows
from hardsample.exporting.checking import difference
from hardsample.exporting.rows import Row, Sample
from hardsample.exporting.starting import DATA_STEM, plain_name, start_command, write_companions
from hardsample.exporting.tables import CHOICE, OPEN, fits_table, lists_twice, table_rows
from hardsample.exporting.writing import JsonLines, Parquet, RowFile, Table, image_file, image_name, replacing
from hardsample.files import EXPORT_FILE
from hardsample.metrics.strata import Verdict
from hardsample.scoring.output import Scores, write_rejected
from hardsample.scoring.rollouts import gradable
from hardsample.scoring.subsets import SUBSETS_FOLDER, chosen_rows, difficulty_columns, source_records

_FITS: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "ms-swift": rows.fits,
    "llamafactory": rows.taking_turns_only,
    "easyr1": rows.one_question_only,
    "verl": rows.fits,
    "prime-rl": rows.fits,
    "vlmevalkit": fits_table,
}
_ROWS: dict[str, Callable[[Sample], Row]] = {
    "ms-swift": rows.ms_swift,
    "llamafactory": rows.llamafactory,
    "easyr1": rows.easyr1,
    "verl": rows.verl,
    "prime-rl": rows.prime_rl,
}
_IN_PARQUET = ("easyr1", "verl", "prime-rl")


@dataclass
class Exported:
    """A folder that was written.

    Attributes:
        folder: the folder.
        samples: how many are in it.
        left_out: reason → how many samples are not in it.
        notes: sentence → how many samples it is about.
        start: how to start the trainer with it.
    """

    folder: Path
    samples: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    start: str = ""


def export(
    scores: Scores,
    labels: list[Verdict],
    specs: list[str],
    seeds: list[int],
    format_name: str,
    output: Path | None = None,
) -> list[Exported]:
    """Write each subset, and for each seed a random control of its size, in the format of a trainer.

    Args:
        scores: a finished run, whose data is still where run.json says.
        labels: λ* and stratum of each of its rows.
        specs: subsets, such as `medium+hard`.
        seeds: of the controls; none: no control.
        format_name: one of `names.TRAINERS`.
        output: folder of the subsets' folders; default DIR/subsets/FORMAT.

    Raises:
        OutputError: the data is not where the run read it, or a scored sample is missing.
        ChangedError: a record is not what was scored under its id.
        FolderError: a folder is in the way.
    """
    wanted = chosen_rows(scores, labels, specs, seeds)
    records = source_records(scores, list(scores.table["id"]), decode=False).select_columns(list(CANONICAL_COLUMNS))
    difficulty = difficulty_columns(scores, labels)
    base = output or scores.directory / SUBSETS_FOLDER / format_name
    written = []
    for name, chosen in wanted.items():
        result = Exported(base / name)
        with replacing(result.folder, EXPORT_FILE) as folder:
            bar = tqdm(chosen, desc=f"export {name}", unit="sample", delay=2, leave=False, disable=None)
            samples = ((records[row], {column: values[row] for column, values in difficulty.items()}) for row in bar)
            tables = _write(samples, scores, format_name, name, list(difficulty), folder, result)
        result.start = start_command(format_name, result.folder, name, tables)
        written.append(result)
    return written


def _write(
    samples: Iterable[tuple[Mapping[str, Any], dict[str, Any]]],
    scores: Scores,
    format_name: str,
    name: str,
    difficulty: list[str],
    folder: Path,
    result: Exported,
) -> list[str]:
    """Fill a folder, count in `result`, and return the stems of the files of data."""
    place = _images(format_name, folder)
    files: dict[str, RowFile] = {}
    rejected = []
    settings = scores.run["settings"]
    with ExitStack() as opened:

        def file_of(stem: str) -> RowFile:
            if stem not in files:
                files[stem] = _open(format_name, folder, stem, difficulty)
                opened.callback(files[stem].close)
            return files[stem]

        if format_name != "vlmevalkit":
            file_of(DATA_STEM)  # there also if no sample fits
        for record, columns in samples:
            reason = _FITS[format_name](record)
            if reason is None:
                images = [place(*file_bytes(ref, max_pixels=settings["max_pixels"])) for ref in record["images"]]
                grading = rows.grading_of(gradable(record, settings.get("answer_boxes")))
                sample = Sample(record, images, columns, grading, scores.options_template)
                stem, row, reason = _row(format_name, sample)
            if reason is not None:
                result.left_out[reason.partition(": ")[0]] += 1
                rejected.append(Rejection(record["record_number"], record["id"], reason))
                continue
            file_of(stem).add(row)
            result.samples += 1
            result.notes.update(notes(format_name, sample, stem))
    write_rejected(folder, rejected)
    write_companions(format_name, folder, name)
    stems = [_stem(format_name, name, stem) for stem in files]
    for stem, final in zip(files, stems, strict=True):
        if stem != final:
            (folder / f"{stem}.tsv").replace(folder / f"{final}.tsv")
    about = {"format": format_name, "subset": name, "samples": result.samples, "left_out": dict(result.left_out)}
    about |= {"scored": scores.run["model"], "hardsample": __version__}
    (folder / EXPORT_FILE).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return stems


def notes(format_name: str, sample: Sample, stem: str) -> list[str]:
    """Return what a trainer will not know of a sample that is in its data, a sentence each.

    Args:
        format_name: of the trainer.
        sample: the sample.
        stem: which of the files it is in.
    """
    said = []
    several = bool(sample.record["answers"])
    if format_name == "llamafactory" and several:
        said.append("fine-tuning teaches the first of several accepted answers; the column answers has all")
    if format_name == "vlmevalkit" and stem == OPEN:
        said.append("VLMEvalKit has no evaluation for a table of open questions: run it with --mode infer")
    if format_name == "vlmevalkit" and several:
        said.append("several accepted answers are a JSON list in the column answer, which only hardsample reads")
    if format_name == "vlmevalkit" and stem == CHOICE and lists_twice(sample):
        said.append("the question itself lists the options, and VLMEvalKit lists them again below it")
    return said


def _row(format_name: str, sample: Sample) -> tuple[str, Row, str | None]:
    """Return the file and the row of a sample, and why none of its rows can be written, or None."""
    is_table = format_name == "vlmevalkit"
    if is_table:
        candidates = table_rows(sample)
    else:
        row = _ROWS[format_name](sample)
        # options that the reader finds without their column, as yes and no, would be listed below the question with it
        candidates = [(DATA_STEM, row), (DATA_STEM, row | {"options": ""})]
    reasons = [difference(sample, row, is_table) for _, row in candidates]
    best = next((place for place, reason in enumerate(reasons) if reason is None), 0)
    return (*candidates[best], reasons[best])


def _images(format_name: str, folder: Path) -> Callable[[bytes, str], Any]:
    """Return a function that gives what stands for an image in a row, and writes its file where it has one."""
    if format_name == "vlmevalkit":
        return lambda content, suffix: base64.b64encode(content).decode()
    if format_name in _IN_PARQUET:
        return lambda content, suffix: {"bytes": content, "path": image_name(content, suffix)}
    return image_file(folder)


def _open(format_name: str, folder: Path, stem: str, difficulty: list[str]) -> RowFile:
    if format_name == "vlmevalkit":
        return Table(folder / f"{stem}.tsv", stem, difficulty)
    if format_name in _IN_PARQUET:
        return Parquet(folder / f"{stem}.parquet", format_name, difficulty)
    return JsonLines(folder / f"{stem}.jsonl")


def _stem(format_name: str, name: str, stem: str) -> str:
    return f"{plain_name(name)}_{stem}" if format_name == "vlmevalkit" else stem
