"""The table of benchmarks: which data each needs and which rule grades it.

Apart from the code that grades, so that the command line lists the names at no cost.
"""

from __future__ import annotations

from dataclasses import dataclass

GENERAL = "general"
"""Rule that takes the grades in the folder, by the graders of `hardsample evaluate` itself."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its data, how it is graded, and its score."""

    title: str
    table: str
    """VLMEvalKit's name of its TSV."""
    hub: str
    """Id of the original data set on the hub."""
    split: str
    samples: int
    """Samples of the whole table that count."""
    rule: str | None
    """Key of `RULES` that grades its answers, or `GENERAL`; None if no rule can."""
    judge: str | None
    """Kind of verdict that its score needs; None if it needs no judge."""
    needs: tuple[str, ...]
    """Columns that the table must have."""
    groups: tuple[str, ...]
    """Columns whose values get an accuracy each."""
    score: str
    """Description of its score."""


BENCHMARKS: dict[str, Benchmark] = {
    "mathvista": Benchmark(
        "MathVista", "MathVista_MINI", "AI4Math/MathVista", "testmini", 1000, GENERAL, "right",
        ("index",), ("task", "skills"), "share of right answers, as a judge model reads them",
    ),
    "mmvet": Benchmark(
        "MM-Vet", "MMVet", "whyu/mm-vet", "test", 218, None, "score",
        ("category",), ("category",), "mean of a judge model's marks, 0 to 1",
    ),
    "ocrbench": Benchmark(
        "OCRBench", "OCRBench", "echo840/OCRBench", "test", 1000, "contained", None,
        ("category",), ("category",), "answers that contain the text, of 1,000",
    ),
    "hallusionbench": Benchmark(
        "HallusionBench", "HallusionBench", "lmms-lab/HallusionBench", "image", 951, "yes_no", None,
        ("index", "l2-category"), ("category", "l2-category"),
        "aAcc: questions; fAcc: figures, and qAcc: questions over all their figures, with all answers right",
    ),
    "mmmu": Benchmark(
        "MMMU", "MMMU_DEV_VAL", "MMMU/MMMU", "validation", 900, "option_or_open", None,
        ("split",), ("category", "l2-category"), "share of right answers",
    ),
    "mmstar": Benchmark(
        "MMStar", "MMStar", "Lin-Chen/MMStar", "val", 1500, "option", None,
        ("category",), ("category", "l2-category"), "share of right answers",
    ),
}  # fmt: skip
