"""Turns of every kind, and the places of their pictures."""

import pytest

from hardsample.conversation import RecordError, read_conversation

IMAGE = {"type": "image", "text": None}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def user(*blocks: dict) -> dict:
    return {"role": "user", "content": list(blocks)}


def test_the_gold_turn_goes_and_earlier_turns_stay():
    turns = [("system", "S"), ("user", "<image>one"), ("assistant", "1"), ("user", "two<image>"), ("assistant", "2")]
    talk = read_conversation([{"role": role, "content": words} for role, words in turns], ["a", "b"], "messages")
    assert talk.gold == "2"
    assert talk.images == ["a", "b"]
    assert talk.prompt == [
        {"role": "system", "content": [text("S")]},
        user(IMAGE, text("one")),
        {"role": "assistant", "content": [text("1")]},
        user(text("two"), IMAGE),
    ]


@pytest.mark.parametrize(
    ("content", "images", "blocks", "order"),
    [
        ("Q", ["a", "b"], [IMAGE, IMAGE, text("Q")], ["a", "b"]),
        ("<image>\nQ", ["a"], [IMAGE, text("\nQ")], ["a"]),
        ("x<image>y<image>z", ["a", "b"], [text("x"), IMAGE, text("y"), IMAGE, text("z")], ["a", "b"]),
        ("<image2> and <image1>", ["a", "b"], [IMAGE, text(" and "), IMAGE], ["b", "a"]),
        ("<image 1> Q: see <image 1>", ["a"], [IMAGE, text(" Q: see (image 1)")], ["a"]),
        ("<image1><image>Q", ["a", "b"], [IMAGE, IMAGE, text("Q")], ["a", "b"]),
        ("<img> a b.png </img>Q", [], [IMAGE, text("Q")], ["a b.png"]),
        ("<img>a</img>Q<image>", ["b"], [IMAGE, text("Q"), IMAGE], ["a", "b"]),
        ([{"type": "image"}, {"type": "text", "text": "Q"}], ["a"], [IMAGE, text("Q")], ["a"]),
        ([{"type": "text", "text": "Q", "image_url": None}, {"type": "image_url", "image_url": {"url": "u"}}], [],
         [text("Q"), IMAGE], [{"url": "u"}]),
        ([{"type": "image_url", "image_url": "u"}, "Q"], [], [IMAGE, text("Q")], ["u"]),
        ([{"type": "image", "image": "u"}, {"text": "Q"}], [], [IMAGE, text("Q")], ["u"]),
        ([{"type": "text", "text": "Q"}], ["a"], [IMAGE, text("Q")], ["a"]),
        (160, [], [text("160")], []),
    ],
)  # fmt: skip
def test_places_of_pictures(content, images, blocks, order):
    talk = read_conversation([{"role": "user", "content": content}], images, "messages")
    assert talk.prompt == [user(*blocks)]
    assert talk.images == order


def test_pictures_without_a_place_go_before_the_first_user_turn_not_the_system_turn():
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    assert read_conversation(turns, ["a"], "prompt").prompt[1] == user(IMAGE, text("Q"))


@pytest.mark.parametrize(
    ("turns", "images", "message"),
    [
        ("<image><image>Q", ["a"], r"2 placeholders \(<image>, <image>\) for 1 images; write one placeholder for each"),
        ("<image>Q", ["a", "b"], "1 placeholders .* for 2 images"),
        ("<image>Q", [], "1 placeholders .* for 0 images"),
        ("<image3>Q", ["a"], r"\(<image3>\) for 1 images"),
        ("<image0>Q", ["a"], "placeholders"),
        ("<image>", ["a"], "column 'messages': no user turn holds text; give it a question"),
        ("  ", [], "no user turn holds text"),
        ([{"role": "system", "content": "S"}], [], "no user turn holds text"),
        ([{"role": "assistant", "content": "S"}], [], "no user turn holds text"),
        ([{"role": "wizard", "content": "Q"}], [], "role 'wizard' is unknown; use one of system, user"),
        (["Q"], [], "role None is unknown"),
        ([{"role": "user", "content": [{"type": "video", "video": "v"}]}], [], "block type 'video' is not supported"),
    ],
)
def test_conversations_that_do_not_fit(turns, images, message):
    with pytest.raises(RecordError, match=message):
        read_conversation(turns, images, "messages")
