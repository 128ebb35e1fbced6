"""What a digest covers, and how records are matched with scores by it."""

import pytest

from hardsample.data.digests import (
    ChangedError,
    changed_parts,
    differences,
    is_old,
    match,
    old_digest,
    same,
    sample_digest,
)
from hardsample.data.images import ImageError


def record(**changes):
    turn = {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "How many?"}]}
    sample = {
        "id": "7",
        "prompt": [turn],
        "images": [{"bytes": b"image", "path": None}],
        "solution": "3",
        "grader": "math",
        "options": None,
        "box_format": None,
        "ability": "counting",
    }
    return sample | changes


OTHER = {
    "prompt": [{"role": "user", "content": [{"type": "text", "text": "How many?"}]}],
    "images": [{"bytes": b"imagE", "path": None}],
    "solution": "4",
    "answers": ["3", "three"],
    "grader": "text",
    "options": ["3", "4"],
    "box_format": "pixels",
}


@pytest.mark.parametrize("column", OTHER)
def test_a_digest_covers_all_that_changes_a_rollout_or_a_grade(column):
    changed = sample_digest(record(**{column: OTHER[column]}))
    assert not same(changed, sample_digest(record()))
    part = column if column in ("prompt", "images") else "solution, options or grader"
    assert changed_parts(changed, sample_digest(record())) == [part]


def test_a_digest_covers_nothing_else():
    assert sample_digest(record(id="8", ability=None, options=[], answers=None)) == sample_digest(record())
    loose = [{"role": "user", "content": [{"type": "image"}, {"text": "How many?", "type": "text"}]}]
    assert sample_digest(record(prompt=loose)) == sample_digest(record())


def test_an_image_counts_by_its_bytes_and_not_by_name_or_size(tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    for path in (first, second):
        path.write_bytes(b"image")
    images = [{"bytes": None, "path": str(first)}]
    assert sample_digest(record(images=images)) == sample_digest(record())
    assert sample_digest(record(images=[{"bytes": None, "path": str(second)}])) == sample_digest(record())
    first.write_bytes(b"imagE")
    assert changed_parts(sample_digest(record(images=images)), sample_digest(record())) == ["images"]
    assert old_digest(record(images=images)) == old_digest(record(images=images)) and is_old(
        old_digest(record(images=images))
    )
    first.unlink()
    with pytest.raises(ImageError, match=r"a\.png.*No such file"):
        sample_digest(record(images=images))


def test_a_part_that_is_not_known_equals_any():
    ungraded = sample_digest(record(solution="other"), graded=False)
    assert same(ungraded, sample_digest(record())) and same("", sample_digest(record()))
    assert not same(ungraded, sample_digest(record(images=[])))


SCORED = {str(number): f"p{number}-i{number}-a{number}" for number in range(6)}


def matched(ids, contents):
    digests = [SCORED.get(str(number), f"new{number}-n-n") for number in contents]
    return match(SCORED, ids, digests, "runs/mine")


def test_data_as_it_was_scored_is_matched_by_id():
    assert matched(["0", "4", "9"], [0, 4, 9]).samples == ["0", "4", None]
    assert matched(["0", "4", "9"], [0, 4, 9]).note == ""


@pytest.mark.parametrize(
    ("contents", "samples"),
    [
        ([0, 1, 3, 4, 5], ["0", "1", "3", "4", "5"]),
        ([5, 4, 3, 2, 1, 0], ["5", "4", "3", "2", "1", "0"]),
        ([0, 2, 3, 4, 5, 77], ["0", "2", "3", "4", "5", None]),
    ],
)
def test_line_numbers_that_moved_are_matched_by_content_with_a_note(contents, samples):
    result = matched([str(row) for row in range(len(contents))], contents)
    assert result.samples == samples
    assert "their ids are line numbers and the lines moved" in result.note and "`id` column" in result.note


def test_the_note_names_the_first_that_moved():
    assert "3 of 5 records" in matched(list("01234"), [0, 1, 3, 4, 5]).note
    assert "sample '2' was scored as sample '3'" in matched(list("01234"), [0, 1, 3, 4, 5]).note


@pytest.mark.parametrize(
    ("ids", "contents", "message"),
    [
        (list("012345"), [0, 1, 77, 3, 4, 5], r"1 of 6 records .* sample '2' has changed \(its prompt and its images"),
        (list("01234"), [0, 77, 3, 4, 5], "sample '1' has changed .*, sample '2' was scored as sample '3'"),
        (list("012345"), [0, 1, 2, 3, 4, 77], "sample '5' has changed"),
        (list("01234"), [0, 1, 3, 3, 5], "sample '2' was scored as sample '3'"),
    ],
)
def test_where_there_is_doubt_the_records_are_named(ids, contents, message):
    with pytest.raises(ChangedError, match=message):
        matched(ids, contents)


def test_ids_that_mean_something_are_never_matched_by_content():
    scored = {"a": "p-i-a", "b": "q-j-b"}
    with pytest.raises(ChangedError, match=r"2 of 2 records .* sample 'a' was scored as sample 'b'") as error:
        match(scored, ["a", "b"], ["q-j-b", "p-i-a"], "runs/mine")
    assert "line numbers" not in str(error.value)


def test_only_some_are_named():
    pairs = [(name, "x-y-z") for name in SCORED]
    message = differences(SCORED, pairs, "runs/mine")
    assert message.count("has changed") == 3 and ", and 3 more." in message
    assert differences(SCORED, list(SCORED.items()), "runs/mine") == ""
