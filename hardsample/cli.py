"""The command line: `hardsample score`, `strata`, `explain`, `evaluate`, `train`, `experiment`, `demo`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console

from hardsample import __version__
from hardsample.config import ScoringConfig, help_of

DONE, FAILED, USAGE, NOTHING, INTERRUPTED = 0, 1, 2, 3, 130

EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 usage, 3 nothing to score, 130 interrupted (the same command goes on)."

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Find the image-and-text samples that are worth training a vision-language model on.",
    epilog=EXIT_CODES,
)

Search = StrEnum("Search", ("lossless", "exhaustive"))
MaskKind = StrEnum("MaskKind", ("pixel", "patch", "rectangle"))
CmabVariant = StrEnum("CmabVariant", ("paper", "released"))
MaskSpace = StrEnum("MaskSpace", ("source", "model"))
EngineName = StrEnum("EngineName", ("transformers",))
GraderName = StrEnum("GraderName", ("math", "ocr", "counting", "grounding", "detection", "choice", "text"))
BoxFormat = StrEnum("BoxFormat", ("pixels", "relative_1000"))
DType = StrEnum("DType", ("float32", "bfloat16", "float16", "auto"))
BenchmarkName = StrEnum("BenchmarkName", ("mathvista", "mmvet", "ocrbench", "hallusionbench", "mmmu", "mmstar"))

_OUT = Console(soft_wrap=True, highlight=False)
_ERR = Console(stderr=True, soft_wrap=True, highlight=False)


def _option(name: str, **more: Any) -> Any:
    return typer.Option(help=help_of(name), **more)


def parse_ratios(text: str) -> tuple[float, ...]:
    """Read `0,0.1,0.2` or `0:0.9:0.1` (first, last, step), exactly.

    Raises:
        typer.BadParameter: if it is neither.
    """
    try:
        if ":" in text:
            first, last, step = map(Fraction, text.split(":"))
            count = (last - first) // step
            return tuple(float(first + place * step) for place in range(count + 1))
        return tuple(float(Fraction(part)) for part in text.split(","))
    except (ValueError, ZeroDivisionError) as error:
        raise typer.BadParameter(
            f"{text!r} is no list of ratios: write 0,0.2,0.4 or first:last:step, 0:0.9:0.1"
        ) from error


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"hardsample {__version__}")
        raise typer.Exit


@app.command(epilog=EXIT_CODES)
def score(
    data: Annotated[
        str,
        typer.Argument(
            help="A .jsonl, .json, .parquet or .tsv file, a folder from save_to_disk, a hub id, or `demo` (also "
            "demo:pool, demo:test, demo:pretrain)."
        ),
    ],
    model: Annotated[str, typer.Option(help="Folder or hub id of a vision-language model, or `demo`.")],
    output: Annotated[Path, typer.Option(help="Folder of the results; an unfinished run in it goes on.")],
    metric: Annotated[str, typer.Option(help=help_of("metric") + ": pism or pism,cmab")] = "pism",
    cmab_variant: Annotated[
        CmabVariant,
        typer.Option(help="paper (all layers but the first and last) or released (one layer, mean per token)"),
    ] = CmabVariant.paper,
    limit: Annotated[int | None, _option("limit", min=1)] = None,
    image_root: Annotated[Path | None, _option("image_root")] = None,
    grader: Annotated[GraderName | None, _option("grader")] = None,
    answer_boxes: Annotated[BoxFormat | None, _option("answer_boxes")] = None,
    engine: Annotated[EngineName, _option("engine")] = EngineName.transformers,
    search: Annotated[Search, _option("search")] = Search.lossless,
    mask: Annotated[MaskKind, _option("kind")] = MaskKind.pixel,
    mask_space: Annotated[MaskSpace, _option("mask_space")] = MaskSpace.source,
    num_masks: Annotated[int, _option("num_masks", min=1)] = 10,
    ratios: Annotated[str, typer.Option(help=help_of("ratios") + ": a,b,c or first:last:step")] = "0:0.9:0.1",
    tau: Annotated[float, _option("tau")] = 0.1,
    temperature: Annotated[float, _option("temperature", min=0)] = 0.7,
    max_new_tokens: Annotated[int | None, _option("max_new_tokens", min=1)] = None,
    batch_size: Annotated[int, _option("batch_size", min=1)] = 64,
    seed: Annotated[int, _option("seed", min=0)] = 0,
    device: Annotated[str | None, _option("device")] = None,
    dtype: Annotated[DType | None, _option("dtype")] = None,
    attn_implementation: Annotated[str | None, _option("attn_implementation")] = None,
    max_pixels: Annotated[int, _option("max_pixels", min=1)] = ScoringConfig.max_pixels,
    blind: Annotated[bool, typer.Option("--blind", help=help_of("blind"))] = False,
    strict: Annotated[bool, typer.Option("--strict", help=help_of("strict"))] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=help_of("trust_remote_code"))] = False,
) -> None:
    """Score how hard each sample is for a model, with PISM: mask random pixels until the model fails.

    With `--metric pism,cmab` also with CMAB: where the attention of its answers goes. The same command with the other
    metric added goes on in the same folder.

    Try it: `hardsample score demo --model demo --output out`. Stop it whenever you like: the same command goes on.
    """
    from hardsample.cmab import CmabConfig

    settings: dict[str, Any] = {
        "metric": tuple(part.strip() for part in metric.split(",")),
        "cmab": CmabConfig(variant=cmab_variant.value),
        "limit": limit,
        "image_root": str(image_root) if image_root else None,
        "grader": grader.value if grader else None,
        "answer_boxes": answer_boxes.value if answer_boxes else None,
        "engine": engine.value,
        "search": search.value,
        "kind": mask.value,
        "mask_space": mask_space.value,
        "num_masks": num_masks,
        "ratios": parse_ratios(ratios),
        "tau": tau,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "seed": seed,
        "device": device,
        "dtype": dtype.value if dtype else None,
        "attn_implementation": attn_implementation,
        "max_pixels": max_pixels,
        "blind": blind,
        "strict": strict,
        "trust_remote_code": trust_remote_code,
    }
    try:
        config = ScoringConfig(**settings)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    _score(data, model, output, config)
    _say(f"next: hardsample strata {output} --subset medium+hard --control")


@app.command(epilog=EXIT_CODES)
def strata(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The --output of a finished `hardsample score`.")],
    hard_max: Annotated[float | None, typer.Option(help="hard if λ* is at most this (default: the run's)")] = None,
    easy_min: Annotated[float | None, typer.Option(help="easy if λ* is at least this (default: the run's)")] = None,
    tau: Annotated[float | None, typer.Option(help="another τ; refused where the rollouts do not decide it")] = None,
    cmab_bounds: Annotated[
        str | None,
        typer.Option(
            help="show CMAB strata with these bounds on the attention balance: four ascending numbers such as "
            "0.1,0.4,1.6,1.9, or shares of the samples such as quantile:0.1,0.3,0.7,0.9"
        ),
    ] = None,
    subset: Annotated[
        list[str] | None, typer.Option(help="write these strata as a dataset, such as medium+hard; may be repeated")
    ] = None,
    control: Annotated[
        bool, typer.Option("--control", help="write an equal-size random control beside each subset")
    ] = False,
    seed: Annotated[list[int] | None, typer.Option(help="seed of the control, default 0; may be repeated")] = None,
) -> None:
    """Show strata, with other bounds if you like, and write subsets and random controls; no new rollouts.

    The labels go to DIR/strata.parquet, each subset to DIR/subsets/NAME (read it with `datasets.load_from_disk`).
    """
    from hardsample.cmab import parse_bounds
    from hardsample.output import OutputError, Scores, write_labels
    from hardsample.strata import Bounds, StrataError, parse_subset
    from hardsample.subsets import write_subsets
    from hardsample.tables import strata_table

    specs = subset or []
    if (control or seed) and not specs:
        raise typer.BadParameter("a control needs the subset whose size it has: add --subset medium+hard")
    with _failing(OutputError, ValueError):
        try:
            for spec in specs:
                parse_subset(spec)
        except StrataError as error:
            raise typer.BadParameter(str(error)) from error
        scores = Scores(directory)
        old = scores.config().bounds
        bounds = Bounds(
            hard_max if hard_max is not None else old.hard_max, easy_min if easy_min is not None else old.easy_min
        )
        labels = scores.labels(bounds, tau)
        used_tau = tau if tau is not None else scores.config().tau
        if cmab_bounds:
            parse_bounds(cmab_bounds, list(scores.table["attention_balance"]))  # a mistake is said before any table
        title = f"Strata of {directory}: hard λ* ≤ {bounds.hard_max}, easy λ* ≥ {bounds.easy_min}, τ = {used_tau}"
        _OUT.print(strata_table(list(scores.table["ability"]), [label.stratum for label in labels], title))
        cmab = _cmab_strata(scores, cmab_bounds) if cmab_bounds else None
        _say(f"labels     {write_labels(scores, labels, bounds, used_tau, cmab)}")
        seeds = (seed or [0]) if control or seed else []
        if specs:
            for path, size in write_subsets(scores, labels, specs, seeds).items():
                _say(f"subset     {path}  ({size} samples)")
            _say("read one with datasets.load_from_disk: its columns are what TRL's GRPOTrainer trains on")


def _cmab_strata(scores: Any, spec: str) -> list[str | None]:
    """CMAB strata with other bounds, shown beside PISM's."""
    from hardsample.cmab import balance_stratum, parse_bounds
    from hardsample.output import OutputError
    from hardsample.tables import cross_table

    balances, old = list(scores.table["attention_balance"]), list(scores.table["cmab_stratum"])
    if not any(old):
        raise OutputError(
            f"{scores.directory} has no attention balances: run its `hardsample score` again with --metric pism,cmab"
        )
    bounds = parse_bounds(spec, balances)
    labels = [
        None if label is None else balance_stratum(balance, label != "unsolved", bounds)
        for balance, label in zip(balances, old, strict=True)
    ]
    values = f"{bounds.easy_below:.3g}, {bounds.hard_min:.3g}, {bounds.hard_max:.3g}, {bounds.easy_above:.3g}"
    _OUT.print(cross_table(list(scores.table["stratum"]), labels, f"PISM and CMAB, bounds on ρ̄: {values}"))
    return labels


@app.command(epilog=EXIT_CODES)
def explain(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The --output of a finished `hardsample score`.")],
    sample: Annotated[str, typer.Option("--id", help="Id of the sample, as in scores.parquet.")],
    model: Annotated[str | None, typer.Option(help="Where the model is now (default: as scored).")] = None,
    device: Annotated[str | None, _option("device")] = None,
) -> None:
    """Draw one sample: its picture, question and completions, its mask ladder, and where its answer's attention went.

    The PNG goes to DIR/explain. The attention of one completion is computed anew, so the model is loaded.
    """
    _say("loading …", err=True)
    import datasets
    import transformers

    from hardsample.engines.transformers import EngineError
    from hardsample.explain import explain as draw
    from hardsample.figures import FiguresError
    from hardsample.output import OutputError

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    with _failing(OutputError, EngineError, FiguresError, ValueError):
        path = draw(directory, sample, model=model, device=device)
    _say(f"figure     {path}")


@app.command(epilog=EXIT_CODES, no_args_is_help=True)
def evaluate(
    data: Annotated[str | None, typer.Argument(help="Data as for `hardsample score`, such as demo:test.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub id of a vision-language model, or `demo`.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the results; an unfinished run in it goes on.")] = None,
    rollouts: Annotated[int, typer.Option(min=1, help="rollouts of each sample; over 1 needs a temperature")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 (greedy) or above")] = 0.0,
    strata_of: Annotated[
        Path | None, typer.Option("--strata", help="folder of a scoring run of these samples: accuracy by its strata")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="two evaluated folders: what the second does better, paired")
    ] = None,
    benchmark: Annotated[
        BenchmarkName | None,
        typer.Option(help="grade as this benchmark does; without DATA: say what to get, and where"),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="of a VLMEvalKit .tsv: write its prediction file, such as MODEL_DATASET.tsv")
    ] = None,
    judge_url: Annotated[
        str | None,
        typer.Option(
            help="OpenAI-compatible server of a judge model, such as http://localhost:8000/v1; key: OPENAI_API_KEY"
        ),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="name of the judge model on that server")] = None,
    limit: Annotated[int | None, _option("limit", min=1)] = None,
    image_root: Annotated[Path | None, _option("image_root")] = None,
    grader: Annotated[GraderName | None, _option("grader")] = None,
    answer_boxes: Annotated[BoxFormat | None, _option("answer_boxes")] = None,
    max_new_tokens: Annotated[int | None, _option("max_new_tokens", min=1)] = None,
    batch_size: Annotated[int, _option("batch_size", min=1)] = 64,
    seed: Annotated[int, _option("seed", min=0)] = 0,
    device: Annotated[str | None, _option("device")] = None,
    dtype: Annotated[DType | None, _option("dtype")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=help_of("trust_remote_code"))] = False,
) -> None:
    """Measure how often a model is right, with 95 % intervals, by ability, source, level and stratum.

    Try it: `hardsample evaluate demo:test --model demo --output runs/before`, and after a training the same with the
    trained model; then `hardsample evaluate --compare runs/before runs/after`.
    """
    from hardsample import evaluation
    from hardsample.benchmarks import BENCHMARKS, missing_data
    from hardsample.output import OutputError
    from hardsample.tables import accuracy_table, comparison_table
    from hardsample.vlmevalkit import check_target

    if compare is not None:
        with _failing(OutputError, ValueError):
            _OUT.print(comparison_table(evaluation.compare(*compare), str(compare[0]), str(compare[1])))
        return
    if benchmark and (data is None or (data.endswith(".tsv") and not Path(data).exists())):
        raise typer.BadParameter(missing_data(benchmark.value))
    if (judge_url is None) != (judge_model is None):
        raise typer.BadParameter("a judge has both a --judge-url and a --judge-model: give the other one too")
    if judge_url and (benchmark is None or BENCHMARKS[benchmark.value].judge is None):
        judged = ", ".join(name for name, known in BENCHMARKS.items() if known.judge)
        raise typer.BadParameter(f"a judge is asked for --benchmark {judged}: name one, or leave --judge-url out")
    for name, value in (("DATA", data), ("--model", model), ("--output", output)):
        if value is None:
            raise typer.BadParameter(f"{name} is missing: name data, --model and --output, or --compare two folders")
    settings: dict[str, Any] = {
        "limit": limit,
        "image_root": str(image_root) if image_root else None,
        "grader": grader.value if grader else None,
        "answer_boxes": answer_boxes.value if answer_boxes else None,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "seed": seed,
        "device": device,
        "dtype": dtype.value if dtype else None,
        "trust_remote_code": trust_remote_code,
    }
    with _running(str(output)):
        if predictions:
            check_target(str(data), predictions)
        judge = _judge(str(output), judge_url, judge_model) if judge_url and judge_model else None
        found = evaluation.evaluate(
            str(data), str(model), str(output), rollouts=rollouts, temperature=temperature, strata=strata_of, **settings
        )
        if predictions:
            _write_predictions(str(data), predictions, found.directory)
        if benchmark:
            _grade_benchmark(found.directory, benchmark.value, judge)
    if not benchmark:
        _OUT.print(accuracy_table(found))
    if found.set_aside:
        _say(f"set aside  {found.set_aside} records that could not be used: {output}/rejected.jsonl")
    _say(f"results    {output} (evaluation.json)")
    _say(f"next: hardsample evaluate --compare {output} ANOTHER_EVALUATION")


def _judge(output: str, url: str, model: str) -> Any:
    """The judge, whose verdicts are kept in the output folder."""
    from hardsample.judge import Judge

    return Judge(output, url, model)


def _write_predictions(table: str, target: Path, directory: Path) -> None:
    """Write VLMEvalKit's prediction file and say what is in it."""
    from hardsample.benchmarks import first_completion
    from hardsample.store import Store
    from hardsample.vlmevalkit import write_predictions

    with Store(directory) as store:
        written, left_out = write_predictions(table, target, lambda sample: first_completion(store, sample))
    rest = f"; {left_out:,} rows without a completion are left out" if left_out else ""
    _say(f"predicted  {target}: {written:,} rows, the first rollout of each{rest}")
    _say(f"           named MODEL_DATASET.tsv, VLMEvalKit grades it: vlmutil eval {target}")


def _grade_benchmark(directory: Path, name: str, judge: Any) -> None:
    """Grade the completions as a benchmark does and print its figures."""
    from hardsample.benchmarks import grade_benchmark
    from hardsample.tables import benchmark_table

    _OUT.print(benchmark_table(grade_benchmark(directory, name, judge)))


@app.command(
    epilog=EXIT_CODES, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, no_args_is_help=True
)
def train(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of options, as `trl grpo --config` takes; see examples/")
    ] = None,
    options: Annotated[
        bool, typer.Option("--options", help="Print every option with its help text: TRL's, and hardsample's.")
    ] = False,
) -> None:
    """Train by GRPO on the samples that teach: TRL's GRPOTrainer, with prompts chosen by difficulty as it goes.

    Every option of `trl grpo` works here, in the file or as `--name value`, and these more: `dataset_name` (any data
    that `hardsample score` reads), `scores` (its output; scored first if there is none), `policy` (uniform, strata,
    signal, target, curriculum), `probe_fraction`, `slice_size`, `attention_balance`, …

    Try it: `hardsample train --config examples/train_embedded.yaml`. Stop it whenever you like: the same command goes
    on from the last checkpoint. Several GPUs: `accelerate launch -m hardsample.cli train --config FILE`.
    """
    _say("loading …", err=True)
    import datasets

    from hardsample.data import DataError
    from hardsample.engines.transformers import EngineError
    from hardsample.scoring import NothingToScoreError
    from hardsample.store import StoreError
    from hardsample.trainer import training

    if options:
        print(training.parser().format_help())
        return
    datasets.disable_progress_bars()
    arguments = [*(["--config", str(config)] if config else []), *context.args]
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, _interrupt)
    try:
        with _failing(EngineError, StoreError, DataError, ValueError, OSError, nothing=(NothingToScoreError,)):
            try:
                wanted = training.parse(arguments)
            except (ValueError, OSError) as error:
                raise typer.BadParameter(str(error)) from error
            training.train(wanted)
    except KeyboardInterrupt:
        kept = "the same command goes on from the last checkpoint"
        if config is not None or context.args:
            _say(f"\nstopped; {kept} in output_dir:", err=True)
            _say(f"  {' '.join(['hardsample', *sys.argv[1:]])}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    _say(f"model      {wanted.grpo.output_dir}")
    _say(f"next: hardsample score YOUR_TEST_DATA --model {wanted.grpo.output_dir} --output runs/after")


@app.command(epilog=EXIT_CODES, no_args_is_help=True)
def experiment(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file of the experiment; see examples/embedded.yaml")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="folder of the experiment, if not the file's")] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="trainings side by side; each takes that share of the cores, or one of the GPUs")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what would be trained and what it costs, and end; scores first")
    ] = False,
    options: Annotated[bool, typer.Option("--options", help="explain every option of the file")] = False,
) -> None:
    """Compare training recipes: score → strata → SFT and GRPO by each recipe and seed → evaluate → one table.

    Recipes are the paper's twelve or your own; random draws of equal size are the control. Means have intervals over
    seeds, one comparison is primary, and the others are corrected for their number.

    Try it: `hardsample experiment examples/embedded.yaml`. Stop it whenever you like: the same command goes on. Recipes
    and seeds may be added later; what is there is not trained again.
    """
    _say("loading …", err=True)
    from hardsample.trainer import experiment as work
    from hardsample.trainer.experiment_config import explain_options, read_experiment
    from hardsample.trainer.tables import plan_table, recipe_table

    if options:
        print(explain_options())
        return
    if config is None:
        raise typer.BadParameter("CONFIG is missing: give a file such as examples/embedded.yaml")
    with _running("the experiment's folder"):
        try:
            wanted = read_experiment(config, output=str(output) if output else None)
            work.check_options(wanted)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        if dry_run:
            work.check_folder(wanted)
            work.score_first(wanted)
            plan, strata = work.laid_out(wanted)
            _OUT.print(plan_table(work.costs(wanted, plan), plan.cells, [one.note for one in strata if one.note]))
            return
        found = work.run_experiment(wanted, jobs)
    _OUT.print(recipe_table(found))
    _say(f"results    {found.folder}/{work.RESULTS_PAGE}, {work.RESULTS_JSON}")
    for key, problem in found.failed.items():
        _say(f"failed     {key}: {problem}  (see {found.folder}/trainings/{key}/log.txt)")
    if found.failed:
        _say("next: mend what failed and give the same command again; what is done is not trained again")
        raise typer.Exit(FAILED)
    _say(f"models     {found.folder}/trainings/*/model; which cell is which: {found.folder}/cells")
    _say(f"next: add recipes or seeds to {config} and give the same command again; what is there is not trained again")


@app.command(epilog=EXIT_CODES)
def demo(
    output: Annotated[Path, typer.Option(help="Folder of the results; an unfinished run in it goes on.")] = Path(
        "runs/demo"
    ),
    limit: Annotated[int | None, _option("limit", min=1)] = None,
    seed: Annotated[int, _option("seed", min=0)] = 0,
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Whether to train on medium+hard and on its control, too.")
    ] = True,
) -> None:
    """Score the 400 demo questions with the embedded model by both metrics, then train on medium+hard and its control.

    Some four minutes on two CPU cores; with --limit, or --no-train, it ends with the strata.
    """
    _say("A 3.4-million-parameter LLaVA model answers questions about small pictures; more and more pixels are masked")
    _say(
        "until it fails: the mask ratio at which it fails is the question's difficulty for this model (PISM). Then its"
    )
    _say("answers to the whole picture are run once more, to see how much attention went to image and text (CMAB).\n")
    _score("demo", "demo", output, ScoringConfig(limit=limit, seed=seed, metric=("pism", "cmab")))
    strata(output, subset=["medium+hard"], control=True)
    if train and limit is None:
        _train_demo(output)
    _say("next: hardsample score YOUR_DATA.jsonl --model YOUR_MODEL --output runs/mine")


def _train_demo(output: Path) -> None:
    """Trains on medium+hard and on equal-size random draws, and shows what each is worth."""
    from hardsample.demo import experiment_file
    from hardsample.trainer import experiment as work
    from hardsample.trainer.experiment_config import read_experiment
    from hardsample.trainer.tables import recipe_table

    _say("\nIs the filter worth it? GRPO on medium+hard, and on as many questions drawn at random, three seeds each:")
    with _running(str(output)):
        wanted = read_experiment(experiment_file(), output=str(output / "recipes"), scores=str(output))
        found = work.run_experiment(wanted, jobs=min(2, os.cpu_count() or 1))
    _OUT.print(recipe_table(found))
    _say(f"results    {found.folder}/{work.RESULTS_PAGE}; more recipes: hardsample experiment examples/embedded.yaml")
    if found.failed:
        for key, problem in found.failed.items():
            _say(f"failed     {key}: {problem}  (see {found.folder}/trainings/{key}/log.txt)")
        raise typer.Exit(FAILED)


def _score(data: str, model: str, output: Path, config: ScoringConfig) -> None:
    """Run the job and print its summary."""
    from hardsample.scoring import score as run
    from hardsample.tables import summary

    with _running(str(output)):
        scores = run(data, model, output, config)
    _OUT.print(summary(scores))


@contextmanager
def _running(output: str) -> Iterator[None]:
    """Lets a job be stopped and gone on with; every known failure ends with its exit code."""
    _say("loading …", err=True)
    import datasets
    import transformers

    from hardsample.data import DataError
    from hardsample.engines.transformers import EngineError
    from hardsample.output import OutputError
    from hardsample.scoring import NothingToScoreError
    from hardsample.store import StoreError

    datasets.disable_progress_bars()  # ours tells what the user waits for
    transformers.utils.logging.disable_progress_bar()
    for name in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell's background jobs are started to ignore it
        signal.signal(name, _interrupt)
    try:
        with _failing(EngineError, StoreError, DataError, OutputError, ValueError, nothing=(NothingToScoreError,)):
            yield
    except KeyboardInterrupt:
        _say(f"\nstopped; every finished batch is in {output}. To go on, type the same command again:", err=True)
        _say(f"  {' '.join(['hardsample', *sys.argv[1:]])}", err=True)
        raise typer.Exit(INTERRUPTED) from None


class _failing:
    """Print these errors and end with exit code 1, or 3 for those of `nothing`."""

    def __init__(self, *errors: type[Exception], nothing: tuple[type[Exception], ...] = ()) -> None:
        self.errors, self.nothing = errors, nothing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, typer.BadParameter | typer.Exit) or not isinstance(error, (*self.nothing, *self.errors)):
            return
        _ERR.print(f"error: {error}", style="bold red", markup=False)
        raise typer.Exit(NOTHING if isinstance(error, self.nothing) else FAILED) from error


def _say(text: str, err: bool = False) -> None:
    (_ERR if err else _OUT).print(text, markup=False)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of the `hardsample` command."""
    app()


if __name__ == "__main__":
    main()
