"""The table of benchmarks: which data each needs and which rule grades it.

Apart from the code that grades, so that the command line lists the names at no cost.
"""

from __future__ import annotations

from dataclasses import dataclass

GENERAL = "general"
"""The rule that stands for the graders of `hardsample evaluate` itself, whose grades the folder holds."""


@dataclass(frozen=True)
class Benchmark:
    """What is known of a benchmark."""

    title: str
    table: str
    """VLMEvalKit's name of its TSV."""
    hub: str
    """Where the original lies on the hub."""
    split: str
    samples: int
    """Samples that count, in the whole table."""
    rule: str | None
    """Which of `RULES` grades its answers, or `GENERAL`; None: no rule can."""
    judge: str | None
    """Which kind of verdict its score needs; None: it needs no judge."""
    needs: tuple[str, ...]
    """Columns that the table must have."""
    groups: tuple[str, ...]
    """Columns whose values have an accuracy of their own."""
    score: str
    """What its score is."""


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
