"""Reading VLMEvalKit's TSV row by row, and writing its prediction file."""

import base64
import csv
import io

import pandas
import pytest
from PIL import Image
from typer.testing import CliRunner

from hardsample.cli.main import app
from hardsample.data.loading import load
from hardsample.data.vlmevalkit import TableError, as_list, write_predictions
from hardsample.demo import load_split
from hardsample.errors import DataError
from hardsample.scoring.output import Scores
from hardsample.scoring.store import Store


def png_bytes(colour="red", size=(16, 12)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def write(path, rows, quoting=csv.QUOTE_MINIMAL):
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", quoting=quoting, lineterminator="\n")
        writer.writerows([names, *([row.get(name, "") for name in names] for row in rows)])
    return path


def text(record):
    return "".join(block["text"] or "<image>" for turn in record["prompt"] for block in turn["content"])


def read_back(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_choice_question(tmp_path, quoting):
    row = {"index": "7", "image": png_bytes(), "question": 'Which "colour"\tis\nit?', "hint": "Look.", "A": "red"}
    row |= {"B": "blue", "C": "", "answer": "A", "category": "colours", "l2-category": "fine"}
    loaded = load(write(tmp_path / "data.tsv", [row], quoting))
    record = loaded.dataset[0]
    assert loaded.format == "vlmevalkit" and record["id"] == "7" and record["grader"] == "choice"
    assert record["options"] == ["red", "blue"] and record["solution"] == "A"
    question = text(record)
    assert (
        question.startswith('<image>Hint: Look.\nWhich "colour"\tis\nit?\nA. red\nB. blue\n') and "C." not in question
    )
    assert (record["category"], record["l2-category"], record["index"]) == ("colours", "fine", "7")
    assert record["ability"] == "colours"
    assert record["image_headers"] == [{"width": 16, "height": 12, "mode": "RGB"}]
    assert "A" not in loaded.dataset.column_names and "hint" in loaded.dataset.column_names


def test_a_short_image_is_the_index_of_another_row(tmp_path):
    rows = [
        {"index": "a", "image": "c", "question": "one?", "answer": "1"},
        {"index": "b", "image": png_bytes("blue", (20, 10)), "question": "two\nlines?", "answer": "2"},
        {"index": "c", "image": png_bytes("green", (30, 10)), "question": "é?", "answer": "3"},
        {"index": "d", "image": "b", "question": "four?", "answer": "4"},
        {"index": "e", "image": "nobody", "question": "five?", "answer": "5"},
        {"index": "f", "image": "d", "question": "six?", "answer": "6"},
    ]
    loaded = load(write(tmp_path / "data.tsv", rows))
    widths = {record["id"]: record["image_headers"][0]["width"] for record in loaded.dataset}
    assert widths == {"a": 30, "b": 20, "c": 30, "d": 20}
    reasons = {rejection.number: rejection.reason for rejection in loaded.rejected}
    assert "'nobody', which is not a row's index" in reasons[4] and "'d', which has no image of its own" in reasons[5]


def test_several_images_and_their_places(tmp_path):
    two = str([png_bytes("red", (10, 8)), png_bytes("blue", (20, 8))])
    rows = [
        {"index": "1", "image": two, "question": "<image 2> or <image 1>?", "A": "x", "B": "y", "answer": "B"},
        {"index": "2", "image": two, "question": "what is in <image 1>?", "answer": "red"},
        {"index": "3", "image": png_bytes(), "question": "no placeholder", "answer": "red"},
    ]
    first, second, third = load(write(tmp_path / "data.tsv", rows)).dataset
    assert text(first).startswith("<image> or <image>?") and [h["width"] for h in first["image_headers"]] == [20, 10]
    assert text(second) == "<image><image>what is in (image 1)?" and len(second["images"]) == 2
    assert text(third) == "<image>no placeholder"


def test_paths_and_rows_without_an_image(tmp_path):
    for name in ("one.png", "two.png"):
        (tmp_path / name).write_bytes(base64.b64decode(png_bytes()))
    rows = [
        {"index": "1", "image_path": "one.png", "question": "q?", "answer": "Yes"},
        {"index": "2", "image_path": "['one.png', 'two.png']", "question": "q?", "answer": "no"},
        {"index": "3", "image_path": "", "question": "q?", "answer": "12"},
        {"index": "4", "image_path": "three.png", "question": "q?", "answer": "12"},
    ]
    loaded = load(write(tmp_path / "data.tsv", rows))
    assert [len(record["images"]) for record in loaded.dataset] == [1, 2, 0]
    assert [record["grader"] for record in loaded.dataset] == ["choice", "choice", "math"]
    assert text(loaded.dataset[0]).endswith("Answer yes or no.") and text(loaded.dataset[2]) == "q?"
    assert [rejection.number for rejection in loaded.rejected] == [3] and "three.png" in loaded.rejected[0].reason


def test_choices_in_their_own_column_keep_their_order(tmp_path):
    row = {"index": "1", "image": png_bytes(), "question": "q?\nChoices:\n(A) No\n(B) Yes", "answer": "Yes"}
    record = load(write(tmp_path / "data.tsv", [row | {"choices": "['No', 'Yes']"}])).dataset[0]
    assert record["options"] == ["No", "Yes"] and record["grader"] == "choice" and text(record).endswith("(B) Yes")


def test_bad_rows_are_rejected_with_their_reason(tmp_path):
    path = tmp_path / "data.tsv"
    good = f"\t{png_bytes()}\tq?\tA text\t\t\tA\n"
    head = "index\timage\tquestion\tA\tB\tC\tanswer\n"
    lines = [
        "1" + good.replace("\t\t\t", "\tB text\t\t"),
        "2\tonly three\tfields\n",
        "3" + good.replace("\t\t\t", "\t\tC text\t"),
        f"4\t{'!' * 80}\tq?\t\t\t\t1\n",
        "5" + good.replace("q?", ""),
        f"6\t{png_bytes()}\tq?\t\t\t\t\n",
        "1" + good,
        "\n",
        "8" + good,
    ]
    path.write_bytes(b"\xef\xbb\xbf" + (head + "".join(lines)).encode() + b"9\t\xff\xfe\tq?\t\t\t\t1\n")
    loaded = load(path)
    assert [record["id"] for record in loaded.dataset] == ["1", "8"]
    reasons = {rejection.number: rejection.reason for rejection in loaded.rejected}
    for number, part in {
        1: "3 fields, the first line 7",
        2: "column 'B' is empty, 'C' is not",
        3: "column 'image'",
        4: "column 'question' is empty",
        5: "'answer'",
        6: "record 0 has the id '1' too",
        8: "not UTF-8",
    }.items():
        assert part in reasons.pop(number)
    assert not reasons


def test_a_quote_that_is_never_closed_costs_the_rows_behind_it_only(tmp_path):
    path = tmp_path / "data.tsv"
    path.write_text(
        f'index\timage\tquestion\tanswer\n1\t{png_bytes()}\tq?\tone\n2\t{png_bytes()}\t"q?\ttwo\n3\tx\ty\tz\n'
    )
    loaded = load(path)
    assert [record["id"] for record in loaded.dataset] == ["1"] and len(loaded.rejected) == 1


def test_a_file_that_is_no_such_table(tmp_path):
    path = tmp_path / "data.tsv"
    for content in ("", "name\tvalue\n1\t2\n", "question\tquestion\na\tb\n"):
        path.write_text(content)
        with pytest.raises(DataError, match="including 'question'"):
            load(path)


def test_memory_does_not_grow_with_the_file(tmp_path):
    import tracemalloc

    def peak(count):
        big = base64.b64encode(base64.b64decode(png_bytes()) + b"\0" * 300_000).decode()
        rows = [
            {"index": str(n), "image": big if n % 2 else str(n + 1), "question": "q?", "answer": "1"}
            for n in range(count)
        ]
        path = write(tmp_path / f"{count}.tsv", rows)
        from hardsample.data.vlmevalkit import read_table

        tracemalloc.start()
        assert sum(isinstance(row, dict) for row in read_table(path)) == count
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    small, large = peak(10), peak(60)
    assert large < small + 400_000 < 60 * 300_000 / 2


def test_lists():
    assert as_list('["a", "b"]') == ["a", "b"] and as_list("['a', 1]") == ["a", "1"]
    assert as_list("plain") == ["plain"] and as_list("[not a list") == ["[not a list"] and as_list("[x]") == ["[x]"]


@pytest.fixture(scope="module")
def demo_table(tmp_path_factory):
    """Return twenty questions of the demo; every fourth image is also the image of a later row."""
    rows = []
    for record in load_split("demo", 20):
        blocks = [block for turn in record["prompt"] for block in turn["content"]]
        (image,) = record["images"]
        rows.append(
            {
                "index": record["id"],
                "image": base64.b64encode(image["bytes"]).decode(),
                "question": "\n".join(block["text"] for block in blocks if block["text"]),
                "answer": record["solution"],
                "category": record["ability"],
            }
        )
    rows.append(rows[0] | {"index": "shared", "image": rows[0]["index"]})
    rows.append(rows[1] | {"index": "broken", "image": "nowhere"})
    return write(tmp_path_factory.mktemp("table") / "Demo.tsv", rows)


def test_table_in_prediction_file_out(demo_table, tmp_path):
    output, target = tmp_path / "run", tmp_path / "predictions" / "demo_Demo.tsv"
    command = ["evaluate", str(demo_table), "--model", "demo", "--output", str(output), "--predictions", str(target)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "21 rows, the first rollout of each; 1 rows without a completion are left out" in done.output
    rows, source = read_back(target), read_back(demo_table)
    assert list(rows[0]) == ["index", "question", "answer", "category", "prediction"]
    assert [row["index"] for row in rows] == [row["index"] for row in source if row["index"] != "broken"]
    assert all(row["question"] == line["question"] for row, line in zip(rows, source, strict=False))
    with Store(output) as store:
        completions = {rollout.sample: rollout.completion for rollout in store.rollouts()}
    assert {row["index"]: row["prediction"] for row in rows} == completions
    assert rows[-1]["index"] == "shared" and rows[-1]["prediction"] == rows[0]["prediction"]
    # VLMEvalKit reads it so
    frame = pandas.read_csv(target, sep="\t")
    assert list(frame["prediction"].astype(str)) == [row["prediction"] for row in rows] and len(frame.columns) == 5
    assert f"ability {rows[0]['category']}" in done.output
    # and a prediction file is a table again: the same questions, without images
    again = load(target)
    assert len(again.dataset) == 21 and again.dataset["prediction"] == [row["prediction"] for row in rows]
    assert any(Scores(output).table["successes"][n][0] for n in range(21))


def test_predictions_are_refused_where_they_cannot_be_written(demo_table, tmp_path):
    for data, target, part in (
        ("demo", "a.tsv", "omit --predictions"),
        (demo_table, "a.xlsx", "ends in '.xlsx'"),
        (demo_table, demo_table, "is the data itself"),
    ):
        command = [
            "evaluate",
            str(data),
            "--model",
            "demo",
            "--output",
            str(tmp_path / "run"),
            "--predictions",
            str(target),
        ]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 1 and part in done.output, done.output
    assert not (tmp_path / "run").exists()
    with pytest.raises(TableError, match="has a completion"):
        write_predictions(demo_table, tmp_path / "a.tsv", lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_a_rejected_row_keeps_its_index(tmp_path):
    path = tmp_path / "data.tsv"
    lines = [
        "index\timage\tquestion\tA\tB\tanswer\n",
        f"7\t{png_bytes()}\tq?\tx\ty\tA\n",
        "8\tnobody\tq?\tx\ty\tA\n",
        f"9\t{png_bytes()}\tq?\t\ty\tB\n",
        "10\tonly\tfour\tfields\n",
        f"11\t{png_bytes()}\tq?\tx\ty\tE\n",
    ]
    path.write_text("".join(lines))
    loaded = load(path)
    assert loaded.dataset["id"] == ["7"]
    assert [(rejection.number, rejection.id) for rejection in loaded.rejected] == [
        (1, "8"),
        (2, "9"),
        (3, "10"),
        (4, "11"),
    ]
    assert "'E' is not one of the 2 options (A. x, B. y)" in loaded.rejected[3].reason


def test_options_are_written_by_the_template_and_may_have_places(tmp_path):
    two = str([png_bytes("red", (10, 8)), png_bytes("blue", (20, 8))])
    row = {"index": "1", "image": two, "question": "which is blue?", "A": "<image 1>", "B": "<image 2>", "answer": "B"}
    path = write(tmp_path / "data.tsv", [row, row | {"index": "2", "B": "none", "A": "see <image 2>"}])
    first, second = load(path, options_template="({letter}) {option}").dataset
    assert text(first) == "which is blue?\n(A) <image>\n(B) <image>"
    assert text(second) == "<image><image>which is blue?\n(A) see (image 2)\n(B) none"
    assert second["options"] == ["see (image 2)", "none"]
    assert text(load(path, options_template="none").dataset[1]) == "<image><image>which is blue?"
