"""The report: what it gathers from each kind of folder, that data stays text, and that the file needs nothing else."""

import base64
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hardsample.cli.main import app
from hardsample.data.images import open_image
from hardsample.engines.masking import mask_image
from hardsample.evaluation.evaluate import evaluate
from hardsample.kernels.keys import mask_key
from hardsample.metrics.strata import STRATA
from hardsample.report.page import write_report
from hardsample.report.parts import charts
from hardsample.report.parts.figures import mean_intervals
from hardsample.report.parts.findings import signature_findings
from hardsample.report.parts.folders import kind_of
from hardsample.report.parts.gallery import MOST_UNMASKED, condensed
from hardsample.report.parts.gather import Group, drawn, gather, grouped
from hardsample.report.parts.images import packed, shown_ratios
from hardsample.report.parts.svg import COLOURS, to_svg
from hardsample.scoring.output import OutputError, Scores
from hardsample.scoring.score import score
from hardsample.scoring.store import Rollout, StoreError, StoreReader


class Parsed(HTMLParser):
    """A page as a browser reads it: elements with attributes, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.text += data.replace("\u00a0", " ")

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def made(folder: Path, output: Path, **options) -> str:
    return write_report(folder, output, **options).read_text()


@pytest.fixture(scope="module")
def html(scored_folder, tmp_path_factory):
    return made(scored_folder, tmp_path_factory.mktemp("report") / "report.html")


def test_the_report_says_what_the_scores_say(scored_folder, html):
    page, scores = Parsed(html), Scores(scored_folder)
    strata = list(scores.table["pism_stratum"])
    for name in STRATA:
        shown = [item for item in page.named("li") if item.get("data-stratum") == name]
        assert len(shown) == strata.count(name), "24 a stratum are shown, and there are no more"
    assert {item["data-id"] for item in page.named("li") if "data-id" in item} == set(scores.table["id"])
    counts = scores.run["counts"]
    assert f"{counts['rollouts']:,} of the {counts['rollouts_exhaustive']:,} rollouts" in page.text
    sections = [section["id"] for section in page.named("section") if "id" in section]
    assert sections == ["strata", "masking", "attention", "gallery", "cost", "settings"]
    for sentence in ("This run is lossless", "Strata by ability", "Strata by source", "Rank correlation of λ* and ρ̄"):
        assert sentence in page.text


def test_data_stays_text(html, hostile):
    page = Parsed(html)
    assert page.text.count(hostile) >= 4, "id, ability, question and completion"
    assert len(page.named("script")) == 1
    assert not [tag for _, tag in page.elements if any(name.startswith("on") or name == "style" for name in tag)]
    assert "49" not in re.findall(r"dialog>(\d+)", page.text), "data is no template either"


def test_the_page_refers_to_nothing_outside_and_runs_only_its_own_script(html):
    page = Parsed(html)
    links = [tag[name] for _, tag in page.elements for name in ("src", "href", "action") if tag.get(name)]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "url(" not in html.replace("url(#", "")
    policy = next(tag["content"] for tag in page.named("meta") if tag.get("http-equiv"))
    for tag, name in (("style", "style-src"), ("script", "script-src")):
        content = re.search(f"<{tag}>(.*?)</{tag}>", html, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_a_report_writes_only_its_file(scored_folder, tmp_path):
    folder = shutil.copytree(scored_folder, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_report(folder, tmp_path / "elsewhere" / "page.html")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_masks_shown_are_those_of_the_run(scored_folder, html):
    scores = Scores(scored_folder)
    sample = next(name for name in scores.table["id"] if name.startswith("pool-"))
    record = gather(scored_folder, 24, 0).source.records[sample]
    image = open_image(record.images[0])
    key = mask_key(scores.run["settings"]["seed"], sample)  # as the engine draws its first mask of a ratio
    assert packed(mask_image(image, 0.3, 0, key), "", 10**6).uri in html


def test_the_gallery_is_drawn_evenly_and_by_its_seed():
    ids = [f"s{row}" for row in range(400)]
    strata = ["easy"] * 300 + ["hard"] * 80 + ["medium"] * 3 + [None] * 17
    rows = drawn(ids, strata, 10, 0)
    assert [strata[row] for row in rows] == ["easy"] * 10 + ["medium"] * 3 + ["hard"] * 10 + [None] * 10
    assert drawn(ids, strata, 10, 1) != rows
    turned = drawn(ids[::-1], strata[::-1], 10, 0)
    assert {ids[row] for row in rows} == {ids[::-1][row] for row in turned}, "whatever the order of the data"


def test_samples_per_stratum_is_a_bound(scored_folder, tmp_path):
    page = Parsed(made(scored_folder, tmp_path / "few.html", samples_per_stratum=1))
    present = {name for name in Scores(scored_folder).table["pism_stratum"] if name}
    assert len([item for item in page.named("li") if "data-id" in item]) == len(present)


def test_data_that_has_moved_is_said_and_found_again(scored_folder, tmp_path):
    folder = shutil.copytree(scored_folder, tmp_path / "run")
    run = json.loads((folder / "run.json").read_text())
    data = run["data"]
    (folder / "run.json").write_text(json.dumps(run | {"data": str(tmp_path / "gone")}))
    page = Parsed(made(folder, tmp_path / "gone.html"))
    assert "Images and questions are not shown because the data was not found" in page.text
    assert not page.named("img")
    page = Parsed(made(folder, tmp_path / "found.html", data=data))
    assert page.named("img")
    assert "not shown" not in page.text
    page = Parsed(made(folder, tmp_path / "other.html", data="demo:test"))
    assert "samples are missing" in page.text
    (folder / "run.json").write_text(json.dumps(run | {"data": "datasets.Dataset"}))
    assert "from memory" in Parsed(made(folder, tmp_path / "memory.html")).text


def test_masks_of_model_space_are_called_an_illustration(scored_folder, tmp_path):
    folder = shutil.copytree(scored_folder, tmp_path / "run")
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"mask_space": "model"}))
    assert "an illustration, not the masks of the run" in Parsed(made(folder, tmp_path / "model.html")).text


def test_a_folder_without_completions_says_so(scored_folder, tmp_path):
    folder = shutil.copytree(scored_folder, tmp_path / "run", ignore=shutil.ignore_patterns("rollouts.sqlite*"))
    page = Parsed(made(folder, tmp_path / "bare.html"))
    assert "Completions are not shown" in page.text
    assert [item for item in page.named("li") if "data-id" in item]


def test_an_exhaustive_run_has_curves_and_a_run_without_cmab_says_how_to_add_it(tmp_path):
    settings = {"ratios": (0.0, 0.5), "num_masks": 2, "tau": 0.5, "limit": 12, "search": "exhaustive", "blind": True}
    score("demo", "demo", tmp_path / "run", progress=False, device="cpu", **settings)
    page = Parsed(made(tmp_path / "run", tmp_path / "full.html"))
    assert "Accuracy against mask ratio by stratum" in {svg.get("aria-label") for svg in page.named("svg")}
    assert "Accuracy curve P_c(λ), 95 % intervals" in page.text
    assert "This run is lossless" not in page.text
    assert "scored without CMAB" in page.text and "hardsample score --metric cmab --output" in page.text
    assert "24 more rollouts measured the blind level" in page.text


def test_an_evaluation_shows_accuracies_and_no_strata(tmp_path):
    evaluation = evaluate("demo:test", "demo", tmp_path / "eval", limit=12, progress=False, device="cpu")
    page = Parsed(made(tmp_path / "eval", tmp_path / "eval.html"))
    assert kind_of(tmp_path / "eval") == "evaluation"
    assert f"{100 * evaluation.overall.value:.1f} % (95 % interval" in page.text
    assert {item["data-stratum"] for item in page.named("li") if "data-id" in item} <= {"solved", "not solved"}
    assert [section["id"] for section in page.named("section") if "id" in section] == [
        "accuracy",
        "gallery",
        "settings",
    ]
    assert "λ*" not in page.text


def checkpoint(folder: Path, step: int, logs: list[dict]) -> None:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(json.dumps({"log_history": logs}))


def logs(steps: int) -> list[dict]:
    entries = []
    for step in range(1, steps + 1):
        data = {f"difficulty/data/{name}": 0.25 for name in STRATA}
        draws = {f"difficulty/draws/{name}": 0.25 for name in STRATA}
        more = {"reward": step / 100, "frac_reward_zero_std": 0.5, "difficulty/frac_zero_std": 0.25, "loss": 0.1}
        entries.append({"step": step, **data, **draws, **more})
    return [*entries, {"step": steps, "train_runtime": 1.0}]


def test_a_training_shows_its_last_complete_checkpoint(tmp_path, hostile):
    checkpoint(tmp_path, 10, logs(10))
    checkpoint(tmp_path, 9, logs(9))
    checkpoint(tmp_path, 20, [])
    (tmp_path / "checkpoint-20" / "trainer_state.json").write_text('{"log_hist')  # killed while it was saved
    (tmp_path / "training.json").write_text(json.dumps({"dataset_name": hostile, "policy": "signal"}))
    page = Parsed(made(tmp_path, tmp_path / "out.html"))
    assert kind_of(tmp_path) == "training"
    assert f"Training a model on {hostile}" in page.text and "checkpoint-10" in page.text
    assert "Mean reward went from 0.015 (first fifth of the log) to 0.095 (last fifth)" in page.text
    assert "25 % of the groups had zero variance" in page.text
    labels = {svg.get("aria-label") for svg in page.named("svg")}
    assert {"Reward over the steps", "Share of zero-variance groups", "Strata of the data over the steps"} <= labels
    assert len(page.named("script")) == 1


def test_a_training_with_dynamic_sampling_shows_what_was_trained_on(tmp_path):
    entries = [entry | {"difficulty/frac_zero_std_trained": 0.05} for entry in logs(10)[:-1]]
    checkpoint(tmp_path, 10, entries)
    page = Parsed(made(tmp_path, tmp_path / "out.html"))
    assert "25 % of the groups had zero variance" in page.text
    assert "Of those that were trained on, 5 % had" in page.text
    assert "of those trained on" in page.text


def test_a_training_with_dynamic_sampling_shows_where_its_rollouts_went(tmp_path):
    counters = {"groups": 40, "zero_std_groups": 24, "trained_groups": 20, "trained_zero_std_groups": 3}
    counters |= {"discarded_rollouts": 1160, "screening_rollouts": 0, "resample_rounds": 7}
    now = {f"difficulty/{name}": float(number) for name, number in counters.items()}
    before = {name: number // 2 for name, number in now.items()}
    entries = [entry | before for entry in logs(10)[:-2]] + [logs(10)[-2] | now]
    checkpoint(tmp_path, 10, entries)
    page = Parsed(made(tmp_path, tmp_path / "out.html"))
    assert "24 of 40 groups that were rolled out (60 %) had zero variance" in page.text
    assert "3 of 20 groups that were trained on (15 %) had zero variance" in page.text
    assert "1,160 rollouts did not reach the optimiser" in page.text
    assert "Where the rollouts went" in page.text and "rounds of refill" in page.text


def test_a_training_that_came_to_its_end_is_shown_to_its_end(tmp_path):
    checkpoint(tmp_path, 10, logs(10))
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": logs(15)}))
    assert "The logs end with" not in Parsed(made(tmp_path, tmp_path / "out.html")).text
    checkpoint(tmp_path, 20, logs(20))  # the same training went on
    page = Parsed(made(tmp_path, tmp_path / "out.html"))
    assert "The logs end with checkpoint-20" in page.text


def test_a_training_of_stock_trl_has_no_strata_and_says_so(tmp_path):
    checkpoint(tmp_path, 5, [{"step": step, "reward": 0.5, "frac_reward_zero_std": 1.0} for step in range(5)])
    page = Parsed(made(tmp_path, tmp_path / "out.html"))
    assert "logged no strata" in page.text
    assert "100 % of the groups had zero variance" in page.text


def test_a_training_without_logs_is_refused(tmp_path):
    (tmp_path / "training.json").write_text("{}")
    with pytest.raises(OutputError, match=r"no logs yet: looked for .*checkpoint-\*/trainer_state\.json"):
        write_report(tmp_path)


def test_an_experiment_shows_its_table_differences_and_curves(experiment_folder, tmp_path):
    page = Parsed(made(experiment_folder, tmp_path / "out.html"))
    assert kind_of(experiment_folder) == "experiment"
    cells = re.sub(r"\s+", " ", page.text)
    for sentence in ("55.0 ± 63.5", "45.0 ± 12.4", "30.0 % before training", "Scoring took 7 rollouts."):
        assert sentence in cells
    assert "Primary comparison: medium+hard minus random is +12.5 ± 31.8 points over 2 seeds" in page.text
    assert "the interval includes 0: no difference was shown" in page.text
    assert "medium+hard: seed 2 diverged (loss). Lower the learning rate" in page.text
    labels = {svg.get("aria-label") for svg in page.named("svg")}
    assert {"Accuracy by recipe", "Differences between recipes", "Reward of the last GRPO stage"} <= labels


def test_an_experiment_without_its_trainings_says_so(experiment_folder, tmp_path):
    folder = shutil.copytree(experiment_folder, tmp_path / "moved", ignore=shutil.ignore_patterns("cells"))
    assert "no curves" in Parsed(made(folder, tmp_path / "out.html")).text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "looked for run.json and scores.parquet"),
        ({"experiment.json": "{}"}, "has no results.json yet"),
        ({"experiment.json": "{}", "results.json": "{}"}, "is not a table of an experiment"),
        ({"experiment.json": "{}", "results.json": "{"}, "cannot be read"),
        ({"run.json": "{}"}, r"scores\.parquet is missing"),
    ],
)
def test_other_folders_are_refused(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(OutputError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_an_unfinished_run_and_no_folder_are_refused(scored_folder, tmp_path):
    folder = shutil.copytree(scored_folder, tmp_path / "run")
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"status": "running"}))
    with pytest.raises(OutputError, match="not finished"):
        write_report(folder)
    with pytest.raises(OutputError, match="is not a folder"):
        write_report(tmp_path / "nothing")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(scored_folder, folder / "run.json" / "report.html")


def test_a_signature_comes_with_what_to_do():
    flat, piled, unknown = signature_findings(
        ["Flat curve: for all.", "Piled up at the extremes: x.", "New sign."], "DIR"
    )
    assert "--blind" in flat.advice
    assert piled.command == "hardsample stratify DIR --cmab-bounds quantile:0.1,0.3,0.7,0.9"
    assert (unknown.text, unknown.advice, unknown.command) == ("New sign.", "", "")


def test_small_groups_are_added_up():
    names = [f"g{row % 40:02}" for row in range(400)] + ["large"] * 50
    groups = grouped(names, ["easy"] * 450)
    assert groups[-1].name == "25 more" and groups[-1].total == 250
    assert next(group for group in groups if group.name == "large").counts["easy"] == 50
    assert sum(group.total for group in groups) == 450


def test_figures_become_small_escaped_svg_in_the_pages_colours():
    groups = [Group('<b onclick="x">&$x_1$', dict.fromkeys((*STRATA, None), 3))]
    svg = str(to_svg(charts.strata_bars(groups), "one", 'a "label" <b>'))
    page = Parsed(svg)
    assert not page.named("b") and '<b onclick="x">&$x_1$' in page.text
    assert page.named("svg")[0]["aria-label"] == 'a "label" <b>'
    assert not [tag for _, tag in page.elements if "style" in tag or "onclick" in tag]
    for colour in COLOURS:
        assert colour not in svg
    for name in STRATA:
        assert f"var(--{name})" in svg
    second = str(to_svg(mean_intervals([("r", 0.5, 0.4, 0.6, [0.5])], 0.3, ""), "two", ""))
    ids, second_ids = (set(re.findall(r'id="([^"]+)"', text)) for text in (svg, second))
    assert ids and second_ids and not ids & second_ids
    assert set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", second)) <= {(name, "") for name in second_ids} | {
        ("", name) for name in second_ids
    }
    assert len(second) < 8_000


def test_images_are_made_to_fit():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8))
    large, small = packed(noise, "", 10**6), packed(noise, "", 5_000)
    assert (large.width, large.height) == (256, 192)
    assert small.width < large.width
    content = base64.b64decode(small.uri.partition(",")[2])
    assert len(content) <= 5_000
    assert Image.open(io.BytesIO(content)).size == (small.width, small.height)
    assert noise.size == (1200, 900), "the image itself is left alone"


def test_the_ratios_shown_hold_the_threshold():
    ratios = tuple(tenth / 10 for tenth in range(10))
    assert shown_ratios(ratios, None) == [0.0, 0.2, 0.4, 0.7, 0.9]
    assert shown_ratios(ratios, 0.3) == [0.0, 0.2, 0.3, 0.4, 0.7, 0.9]
    assert shown_ratios((0.0,), 0.0) == [0.0]


def test_completions_are_condensed_and_none_is_lost():
    rollouts = [Rollout("s", 0.0, k, "same", 1, []) for k in range(5)]
    rollouts += [Rollout("s", 0.0, 10 + k, f"other {k}", 0, []) for k in range(12)]
    rollouts += [Rollout("s", 0.5, 0, "x" * 5000, 0, [])]
    groups, more = condensed(rollouts)
    assert (groups[0].text, groups[0].times, groups[0].right) == ("same", 5, True)
    assert len([group for group in groups if group.ratio == 0.0]) == MOST_UNMASKED
    assert len(groups[-1].text) < 1000
    assert sum(group.times for group in groups) + more == len(rollouts)


def test_the_moving_mean_takes_what_is_there_at_the_ends():
    assert charts.moving_mean([0.0, 3.0, 6.0, 9.0], 3) == [1.5, 3.0, 6.0, 7.5]


def test_a_store_is_read_without_a_lock_and_without_being_written_to(scored_folder, tmp_path):
    sample = Scores(scored_folder).table["id"][1]
    with StoreReader(scored_folder) as first, StoreReader(scored_folder) as second:
        assert first.rollouts(sample) == second.rollouts(sample) != []
        assert set(first.digests()) == set(Scores(scored_folder).table["id"])
    with pytest.raises(StoreError, match="cannot be read"):
        StoreReader(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_page_and_says_where(scored_folder, tmp_path):
    output = tmp_path / "out.html"
    done = CliRunner().invoke(
        app, ["report", str(scored_folder), "--output", str(output), "--samples-per-stratum", "2"]
    )
    assert done.exit_code == 0, done.output
    assert f"report     {output}" in done.output
    assert output.stat().st_size < 2_000_000
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 1
    assert "holds no results" in done.output


def test_a_training_is_watched_by_the_command(tmp_path):
    entries = [{"step": step, "reward": 0.5, "frac_reward_zero_std": 1.0, "loss": 0.0} for step in range(1, 30)]
    checkpoint(tmp_path, 29, entries)
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    page = Parsed((tmp_path / "report.html").read_text())
    assert [tag for tag in page.named("div") if tag.get("class") == "finding"]


@pytest.mark.parametrize(("share", "found"), [(1.0, True), (0.9, False)])
def test_a_short_training_is_judged_as_a_whole(tmp_path, share, found):
    trained = {"difficulty/frac_zero_std_trained": share}
    checkpoint(tmp_path, 3, [{"step": step, "reward": 0.0, "loss": 0.0, **trained} for step in range(1, 4)])
    text = Parsed(made(tmp_path, tmp_path / "out.html")).text
    assert ("100% of the groups had zero variance over all 3 logs" in text) == found
    assert ("No failure signature was found" in text) != found


def test_the_demo_ends_with_its_report(tmp_path, monkeypatch):
    monkeypatch.setattr("hardsample.cli.console.signal.signal", lambda *_: None)  # this process keeps its own
    done = CliRunner().invoke(app, ["demo", "--output", str(tmp_path), "--limit", "6"])
    assert done.exit_code == 0, done.output
    *_, report, following = done.stdout.splitlines()
    assert report == f"report     {tmp_path}/report.html" and following.startswith("next: ")
    assert "attention" in [tag.get("id") for tag in Parsed((tmp_path / "report.html").read_text()).named("section")]
