"""Subsets in the formats of other trainers: written from a real scoring, read back with hardsample's own reader."""

import importlib.util
import io
import json
import shutil
import sys
import types
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset, load_from_disk
from PIL import Image
from typer.testing import CliRunner

from hardsample.cli.main import app
from hardsample.data.images import file_bytes, open_image
from hardsample.data.loading import load
from hardsample.data.records.defaults import DEFAULT_TEMPLATE
from hardsample.data.records.option_text import chosen
from hardsample.exporting import rows, writing
from hardsample.exporting.checking import difference
from hardsample.exporting.export import export
from hardsample.exporting.hub import card, escaped, write_hub
from hardsample.exporting.names import TRAINERS
from hardsample.exporting.prompts import same_prompt
from hardsample.exporting.rows import Sample
from hardsample.exporting.tables import fits_table, lists_twice, table_rows
from hardsample.exporting.writing import FolderError, replacing
from hardsample.grading.grader import Grader
from hardsample.scoring.labels import read_labels, write_labels
from hardsample.scoring.output import Scores
from hardsample.scoring.rollouts import gradable
from hardsample.scoring.score import score
from hardsample.scoring.subsets import (
    DIFFICULTY_COLUMNS,
    difficulty_columns,
    read_cmab_strata,
    source_records,
    write_subsets,
)

SUBSET = "easy+medium+hard+unsolved+unfinished"
LISTED = "A. red\nB. blue\nAnswer with the letter of the right option."
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count."}]
HALVES = "[[0, 0, 500, 500], [500, 500, 900, 900]]"
RECORDS = {
    "letter": ({"question": "What colour?", "options": ["red", "blue"], "answer": "B"}, 1, "B", "A"),
    "text": ({"question": "What colour is it?", "options": ["red", "blue"], "answer": "red"}, 1, "A", "blue"),
    "index": ({"question": "What colour is this?", "choices": ["red", "blue"], "answer": 1}, 1, "blue", "red"),
    "../../up": ({"question": f"Which?\n{LISTED}", "options": ["red", "blue"], "answer": "A"}, 1, "red", "B"),
    "both": ({"question": "Which?", "options": ["red", "blue", "green"], "answer": ["A", "C"]}, 1, "A, C", "A"),
    "written": ({"question": "Which?\n(A) one\n(B) two", "answer": "two"}, 1, "B", "A"),
    "clash": ({"question": "Which point?", "options": ["B", "A"], "answer": "A"}, 1, "A", "B"),
    "none": ({"question": "Which is it?", "options": ["red", "None"], "answer": "A"}, 1, "A", "B"),
    "yes": ({"question": "Is it red?", "answer": "yes"}, 1, "Yes", "No"),
    "several": ({"question": "What does it say?", "answers": ["stop", "halt sign"]}, 1, "halt sign", "give way"),
    "number": ({"question": "How much is $\\frac{1}{2}$?", "answer": "\\frac{1}{2}"}, 1, "0.5", "0.6"),
    "/etc/passwd": ({"question": 'How many\tdots,\n"quoted"\r\nand more?', "answer": "12"}, 1, "12", "13"),
    "count": ({"question": "How many dots?", "answer": 3, "grader": "counting"}, 1, "3", "4"),
    "box": ({"question": "Where is it?", "answer": [2, 3, 20, 24]}, 1, "[2, 3, 20, 25]", "[2, 3, 4, 5]"),
    "boxes": (
        {"question": "Where?", "answer": HALVES, "box_format": "relative_1000"}, 1, HALVES, "[[0, 0, 500, 500]]"
    ),
    "Größe ☃ 图": ({"question": "多少？ Größe ☃ 😀", "answer": "schön"}, 1, "schön", "hässlich"),
    "two": ({"question": "<image>Here, and <image>there: the same?", "answer": "no"}, 2, "No", "Yes"),
    "two first": ({"question": "Do they differ?", "answer": "7"}, 2, "7", "8"),
    "turns": ({"prompt": TALK, "answer": "4"}, 1, "4", "5"),
}  # fmt: skip
"""Id → the record, its number of images, an answer that is right and one that is wrong."""
LEFT_OUT = {name: set() for name in TRAINERS}
LEFT_OUT |= {"easyr1": {"turns"}, "vlmevalkit": {"turns", "both", "none", "two"}}


def noise(seed, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, len(mode)), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_data(folder):
    """Write the records above, with images of odd kinds: turned by EXIF, transparent, JPEG."""
    (folder / "files").mkdir(parents=True)
    lines = []
    for number, (name, (record, count, _, _)) in enumerate(RECORDS.items()):
        images = [f"files/{number}-{place}.{'jpg' if number % 3 == 1 else 'png'}" for place in range(count)]
        for place, path in enumerate(images):
            exif = Image.Exif()
            if number % 2:
                exif[0x0112] = 6
            image = noise(number * 10 + place, "RGBA" if number % 3 == 2 else "RGB")
            image.resize((32, 24)).save(folder / path, exif=exif)
        lines.append(json.dumps({"id": name, **record, "images": images, "level": number}))
    (folder / "data.jsonl").write_text("\n".join(lines))
    return folder / "data.jsonl"


@pytest.fixture(scope="session")
def odd_folder(made_once):
    """A scoring of one record of every kind."""

    def fill(folder):
        settings = {"ratios": (0.0, 0.5), "num_masks": 2, "tau": 0.3, "metric": ("pism", "cmab"), "max_new_tokens": 4}
        score(str(write_data(folder)), "demo", folder / "run", progress=False, device="cpu", **settings)

    return made_once("odd", fill) / "run"


@pytest.fixture(scope="session")
def exported(odd_folder, tmp_path_factory):
    """Format → what was exported from the folder above."""
    scores = Scores(odd_folder)
    labels = read_labels(scores).verdicts
    base = tmp_path_factory.mktemp("exported")
    return {name: export(scores, labels, [SUBSET], [], name, base / name)[0] for name in TRAINERS}


def data_files(folder):
    files = [path for path in folder.iterdir() if path.suffix in (".jsonl", ".parquet", ".tsv")]
    return [path for path in files if path.name != "rejected.jsonl"]


def read_all(folder):
    """Return the records that hardsample reads from a folder, by id."""
    return {record["id"]: record for path in data_files(folder) for record in load(path).dataset}


def parquet(folder):
    return load_dataset("parquet", data_files=str(folder / "train.parquet"), split="train")


def lines(path):
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_every_record_was_scored(odd_folder):
    assert set(Scores(odd_folder).table["id"]) == set(RECORDS)


@pytest.mark.parametrize("name", TRAINERS)
def test_what_is_read_back_is_what_was_scored(name, exported, odd_folder):
    scores = Scores(odd_folder)
    scored = {record["id"]: record for record in source_records(scores, list(scores.table["id"]), decode=False)}
    read = read_all(exported[name].folder)
    assert set(read) == set(RECORDS) - LEFT_OUT[name]
    assert exported[name].samples == len(read)
    for key, record in read.items():
        before = scored[key]
        assert same_prompt(record["prompt"], before["prompt"]), key
        for column in ("options", "grader", "box_format", "ability"):
            assert record[column] == before[column], key
        if before["grader"] == "choice" and before["options"]:
            golds = [chosen([item["solution"]], item["options"], False) for item in (record, before)]
            assert golds[0] is not None and golds[0] == golds[1], key
        else:
            assert (record["solution"], record["answers"]) == (before["solution"], before["answers"]), key
        assert len(record["images"]) == len(before["images"]) == RECORDS[key][1]
        for mine, theirs in zip(record["images"], before["images"], strict=True):
            assert np.array_equal(np.asarray(open_image(mine)), np.asarray(open_image(theirs))), key


@pytest.mark.parametrize("name", TRAINERS)
def test_right_and_wrong_answers_are_graded_as_before(name, exported):
    with Grader() as grader:
        for key, record in read_all(exported[name].folder).items():
            asked = gradable(record, None)
            answers = [(f"<answer>{text}</answer>", asked) for text in RECORDS[key][2:]]
            assert grader.grade_many(answers) == [True, False], key


@pytest.mark.parametrize("name", TRAINERS)
def test_what_does_not_fit_is_counted_and_listed(name, exported):
    result = exported[name]
    rejected = lines(result.folder / "rejected.jsonl")
    assert {item["id"] for item in rejected} == LEFT_OUT[name]
    assert result.left_out.total() == len(rejected)
    assert {item["reason"].partition(": ")[0] for item in rejected} == set(result.left_out)
    about = json.loads((result.folder / "export.json").read_text())
    assert (about["format"], about["samples"], about["left_out"]) == (name, result.samples, dict(result.left_out))


@pytest.mark.parametrize("name", TRAINERS)
def test_difficulty_is_in_every_row(name, exported, odd_folder):
    table = Scores(odd_folder).table
    scored = {row["id"]: row for row in table}
    for key, record in read_all(exported[name].folder).items():
        row = scored[key]
        assert record["pism_stratum"] == row["pism_stratum"] and record["cmab_stratum"] == row["cmab_stratum"]
        assert float(record["success_rate"]) == row["successes"][0] / row["attempts"][0]
        for column in ("failure_threshold", "attention_balance"):
            number = record[column] if record[column] is None else float(record[column])
            assert number == row[column], (key, column)


@pytest.mark.parametrize("name", TRAINERS)
def test_no_name_leaves_the_folder(name, exported):
    folder = exported[name].folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert all("up" not in path.name and "passwd" not in path.name for path in folder.rglob("*"))
    for path in data_files(folder):
        for row in lines(path) if path.suffix == ".jsonl" else ():
            for image in row["images"]:
                assert (folder / image).resolve().is_relative_to(folder.resolve()) and (folder / image).is_file()


def test_images_that_programs_show_differently_become_plain(exported):
    for path in (exported["ms-swift"].folder / "images").iterdir():
        with Image.open(path) as image:
            assert image.mode == "RGB" and image.getexif().get(0x0112, 1) == 1
            assert np.array_equal(np.asarray(image), np.asarray(open_image(str(path))))


def test_plain_images_are_copied_byte_by_byte():
    buffer = io.BytesIO()
    noise(1).save(buffer, "JPEG")
    assert file_bytes(buffer.getvalue()) == (buffer.getvalue(), "jpg")


def module(path, monkeypatch, **stubs):
    """Import a file as the trainers do, with stand-ins for packages that are not installed here."""
    for name, stub in stubs.items():
        monkeypatch.setitem(sys.modules, name, stub)
    spec = importlib.util.spec_from_file_location("custom_reward_fn", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def answered(asked):
    """Return each row twice, a right and a wrong answer to it, and what they are worth."""
    pairs = [(row, f"so it is <answer>{text}</answer>") for row in asked for text in RECORDS[row["id"]][2:]]
    return [row for row, _ in pairs], [text for _, text in pairs], [1.0, 0.0] * (len(pairs) // 2)


@pytest.mark.parametrize("version", ["swift.rewards", "swift.plugin"])
def test_the_reward_of_ms_swift(exported, monkeypatch, version):
    where = types.ModuleType(version)
    where.ORM, where.orms = object, {}
    folder = exported["ms-swift"].folder
    module(folder / "reward.py", monkeypatch, swift=types.ModuleType("swift"), **{version: where})
    asked, texts, worth = answered(lines(folder / "train.jsonl"))
    columns = {name: [row[name] for row in asked] for name in ("solution", "grading", "messages", "images")}
    assert where.orms["hardsample"]()(texts, **columns, trainer_state=None) == worth


def test_the_reward_of_easyr1(exported, monkeypatch):
    folder = exported["easyr1"].folder
    loaded = module(folder / "reward.py", monkeypatch)
    asked, texts, worth = answered(parquet(folder))
    inputs = [
        {"response": text, "response_length": 9, "ground_truth": row["grading"]}
        for row, text in zip(asked, texts, strict=True)
    ]
    assert [item["overall"] for item in loaded.compute_score(inputs)] == worth
    assert loaded.compute_score(inputs[1]) == {"overall": 0.0, "accuracy": 0.0}
    assert loaded.REWARD_TYPE == "batch"


def test_the_reward_of_verl(exported, monkeypatch):
    folder = exported["verl"].folder
    loaded = module(folder / "reward.py", monkeypatch)
    asked, texts, worth = answered(parquet(folder))
    scored = [
        loaded.compute_score(
            data_source=row["data_source"],
            solution_str=text,
            ground_truth=row["reward_model"]["ground_truth"],
            extra_info=row["extra_info"],
        )
        for row, text in zip(asked, texts, strict=True)
    ]
    assert scored == worth
    assert isinstance(asked[0]["images"][0], Image.Image)


def test_the_environment_of_prime_rl(exported, monkeypatch):
    verifiers = types.ModuleType("verifiers")
    verifiers.Rubric = lambda funcs: funcs
    verifiers.SingleTurnEnv = lambda **parts: types.SimpleNamespace(**parts)
    folder = exported["prime-rl"].folder
    (source,) = folder.glob("hardsample_*.py")
    environment = module(source, monkeypatch, verifiers=verifiers).load_environment()
    named = [row | {"id": key} for key, row in zip(parquet(folder)["id"], environment.dataset, strict=True)]
    asked, texts, worth = answered(named)
    (reward,) = environment.rubric
    scored = [
        reward(completion=[{"role": "assistant", "content": text}], info=row["info"], state={})
        for row, text in zip(asked, texts, strict=True)
    ]
    assert scored == worth
    read = {record["id"]: record for record in load(named).dataset}
    assert set(read) == set(RECORDS) and len(read["two"]["images"]) == 2
    assert f'py-modules = ["{source.stem}"]' in (folder / "pyproject.toml").read_text()


def test_the_description_of_llamafactory(exported):
    folder = exported["llamafactory"].folder
    ((name, about),) = json.loads((folder / "dataset_info.json").read_text()).items()
    assert f"--dataset {name} " in exported["llamafactory"].start
    asked = lines(folder / about["file_name"])
    assert all(row[about["columns"]["messages"]][-1]["role"] == about["tags"]["assistant_tag"] for row in asked)
    texts = ["".join(turn["content"] for turn in row["messages"]) for row in asked]
    assert [text.count("<image>") for text in texts] == [len(row["images"]) for row in asked]
    assert list(exported["llamafactory"].notes.values()) == [1]


def test_tables_as_pandas_reads_them(exported):
    pandas = pytest.importorskip("pandas")
    folder = exported["vlmevalkit"].folder
    choice, questions = (pandas.read_csv(next(folder.glob(f"*_{kind}.tsv")), sep="\t") for kind in ("mcq", "openended"))
    assert {"A", "B"} <= set(choice) and not {"A", "B"} & set(questions)
    assert choice["answer"].isin(list("AB")).all() and not choice[["A", "B"]].isna().any().any()
    assert not choice["question"].str.contains("Answer with the letter").any()
    for table in (choice, questions):
        assert table["index"].dtype.kind == "i" and not table[["question", "answer", "image"]].isna().any().any()
        assert not table["image_path"].str.contains("/").any()


@pytest.mark.parametrize("name", TRAINERS)
def test_the_command_line(name, scored_folder, tmp_path):
    options = ["--subset", "medium+hard", "--control", "--format", name, "--output", str(tmp_path)]
    for _ in range(2):  # a second export takes the place of the first
        done = CliRunner().invoke(app, ["export", str(scored_folder), *options])
        assert done.exit_code == 0, done.output
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == ["medium+hard", "random-like-medium+hard-seed0"]
    assert "next: " in done.output and str(tmp_path / "medium+hard") in done.output.replace("\n", "")


def test_a_folder_that_is_not_ours_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("x")
    with pytest.raises(FolderError, match="name another --output"), replacing(tmp_path / "mine", "export.json"):
        pass
    assert (tmp_path / "mine" / "work.txt").exists()


def test_a_failed_export_leaves_the_old_one(tmp_path):
    target = tmp_path / "subset"
    with replacing(target, "export.json") as folder:
        (folder / "export.json").write_text("1")

    def stop():
        with replacing(target, "export.json") as folder:
            (folder / "export.json").write_text("2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert (target / "export.json").read_text() == "1" and [path.name for path in tmp_path.iterdir()] == ["subset"]


def test_what_a_training_has_put_into_a_folder_stays(tmp_path):
    target = tmp_path / "subset"
    for text in ("1", "2"):
        with replacing(target, "export.json") as folder:
            (folder / "export.json").write_text(text)
            (folder / f"hardsample_{text}.tsv").write_text(text)
        (target / "output").mkdir(exist_ok=True)
        (target / "output" / f"checkpoint-{text}").write_text(text)
    assert sorted(path.name for path in target.iterdir()) == ["export.json", "hardsample_2.tsv", "output"]
    target.rename(tmp_path / ".subset.hardsample.old")  # as if killed between two renames
    with pytest.raises(ValueError, match="stopped"), replacing(target, "export.json"):
        raise ValueError("stopped")
    assert [path.name for path in tmp_path.iterdir()] == ["subset"]
    old = tmp_path / ".subset.hardsample.old" / "output"
    old.mkdir(parents=True)
    with pytest.raises(FolderError, match="move it to another place"), replacing(target, "export.json"):
        pass
    assert old.exists()
    assert len(list((target / "output").iterdir())) == 2 and (target / "export.json").read_text() == "2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--subset", "hard", "--format", "csv"], "--format is 'csv', must be one of trl, ms-swift"),
        (["--subset", "hard", "--format", "hub"], "leave out --subset"),
        (["--format", "verl"], "--subset is missing"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    done = CliRunner().invoke(app, ["export", "nothing", *options])
    assert message in f"{done.exception} {done.output}"


def test_the_dataset_for_the_hub(scored_folder, tmp_path):
    scores = Scores(scored_folder)
    folder = write_hub(scores, read_labels(scores).verdicts, tmp_path / "hub")
    read = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    for name in ("id", "pism_stratum", "digest", "attention_balance", "successes"):
        assert list(read[name]) == list(scores.table[name])
    assert write_hub(scores, read_labels(scores).verdicts, folder) == folder
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_text("# Mine")
    with pytest.raises(FolderError, match="name another --output"):
        write_hub(scores, read_labels(scores).verdicts, folder)
    assert all(f"| {escaped(name)} |" in text for name in read.column_names)
    assert str(scored_folder.parent) not in text


def test_the_card_shows_text_as_text(hostile):
    run = {"data": f"{hostile}\n# a heading", "model": f"x | y {hostile}", "settings": {"grader": "[a](b) `c`"}}
    text = card(run, ["id"], ["easy", None])
    head, body = text.split("---\n")[1:3]
    assert "hacked" not in head
    assert "<script" not in body and "<img" not in body and "\n# a heading" not in body
    assert "x \\| y" in body and "\\[a\\]\\(b\\) \\`c\\`" in body
    assert "| easy | 1 |" in body


def sample_of(**changes):
    """Return a sample without a file behind it."""
    (record,) = load([{"question": "What colour?", "options": ["red", "blue"], "answer": "B"} | changes]).dataset
    images = [f"images/{place}.png" for place in range(len(record["images"]))]
    return Sample(record, images, {"pism_stratum": None}, rows.grading_of(record), DEFAULT_TEMPLATE)


WRITERS = [rows.ms_swift, rows.llamafactory, rows.easyr1, rows.verl, rows.prime_rl]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_record_without_an_image(writer):
    sample = sample_of()
    row = writer(sample)
    assert row["images"] == [] and difference(sample, row) is None
    assert fits_table(sample.record) == "VLMEvalKit leaves out rows without an image"


@pytest.mark.parametrize("writer", WRITERS)
def test_a_row_that_would_be_read_otherwise_is_found(writer):
    sample = sample_of(image=[noise(1), noise(2)])
    row = writer(sample)
    assert difference(sample, row) is None
    text = json.dumps(row)
    for old, new, problem in [
        ("What colour", "Which colour", "question"),
        ("images/0.png", "images/2.png", "images"),
        ('"grader": "choice"', '"grader": "text"', "graded differently"),
        ('"id": "0"', '"id": "7"', "id"),
    ]:
        assert old in text
        assert problem in difference(sample, json.loads(text.replace(old, new))), old
    golds = [place for place in ("solution", "answer") if place in row]
    for place in golds:
        assert "graded differently" in difference(sample, row | {place: "A"})


def test_a_row_of_a_table_that_would_be_read_otherwise_is_found():
    sample = replace(sample_of(image=[noise(1)]), images=["iVBOR" * 20])
    (kind, row), *_ = table_rows(sample)
    assert (kind, row["answer"], row["question"], row["A"]) == ("mcq", "B", "What colour?", "red")
    assert difference(sample, row, is_table=True) is None
    assert "graded differently" in difference(sample, row | {"answer": "A"}, is_table=True)
    assert "id" in difference(sample, row | {"hardsample_id": ""} | {"index": "9"}, is_table=True)
    assert not lists_twice(sample)


def test_large_parquet_files_are_written_in_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "BATCH_BYTES", 2000)
    file = writing.Parquet(tmp_path / "train.parquet", "easyr1", ["pism_stratum"])
    sample = replace(sample_of(), images=[{"bytes": b"x" * 1000, "path": "a.png"}])
    for _ in range(7):
        file.add(rows.easyr1(sample))
    file.close()
    read = pq.ParquetFile(tmp_path / "train.parquet")
    assert (read.num_row_groups, read.metadata.num_rows) == (4, 7)


def test_json_lines_load_as_trainers_load_them(exported, tmp_path):
    for name in ("ms-swift", "llamafactory"):
        path = exported[name].folder / "train.jsonl"
        read = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path))
        assert len(read) == exported[name].samples and read["messages"][0][0]["role"] == "user"


def test_trl_has_the_same_columns(odd_folder, exported, tmp_path):
    scores = Scores(odd_folder)
    (folder,) = write_subsets(scores, read_labels(scores).verdicts, [SUBSET], [], tmp_path)
    dataset = load_from_disk(str(folder))
    assert set(DIFFICULTY_COLUMNS) <= set(dataset.column_names) and "level" in dataset.column_names
    mine = {row["id"]: row["success_rate"] for row in lines(exported["ms-swift"].folder / "train.jsonl")}
    assert dict(zip(dataset["id"], dataset["success_rate"], strict=True)) == mine


def test_strata_of_the_last_stratify_are_exported(scored_folder, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(scored_folder, folder)
    scores = Scores(folder)
    assert read_cmab_strata(scores) == list(scores.table["cmab_stratum"])
    other = ["easy" if label else None for label in scores.table["cmab_stratum"]]
    write_labels(scores, scores.labels(), scores.config().bounds, scores.config().tau, other)
    assert difficulty_columns(scores, scores.labels())["cmab_stratum"] == other
