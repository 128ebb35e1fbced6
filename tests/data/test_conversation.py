"""Turns of every kind, and the placeholders of their images."""

import pytest

from hardsample.data.records.conversation import RecordError, read_conversation

IMAGE = {"type": "image", "text": None}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def user(*blocks: dict) -> dict:
    return {"role": "user", "content": list(blocks)}


def test_the_gold_turn_goes_and_earlier_turns_stay():
    turns = [("system", "S"), ("user", "<image>one"), ("assistant", "1"), ("user", "two<image>"), ("assistant", "2")]
    conversation = read_conversation(
        [{"role": role, "content": words} for role, words in turns], ["a", "b"], "messages"
    )
    assert conversation.gold == "2"
    assert conversation.images == ["a", "b"]
    assert conversation.prompt == [
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
def test_placeholders_of_images(content, images, blocks, order):
    conversation = read_conversation([{"role": "user", "content": content}], images, "messages")
    assert conversation.prompt == [user(*blocks)]
    assert conversation.images == order


def test_images_without_a_placeholder_go_before_the_first_user_turn_not_the_system_turn():
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    assert read_conversation(turns, ["a"], "prompt").prompt[1] == user(IMAGE, text("Q"))


@pytest.mark.parametrize(
    ("turns", "images", "message"),
    [
        (
            "<image><image>Q",
            ["a"],
            r"2 placeholders \(<image>, <image>\) for 1 images; write one placeholder per image",
        ),
        ("<image>Q", ["a", "b"], "1 placeholders .* for 2 images"),
        ("<image>Q", [], "1 placeholders .* for 0 images"),
        ("<image3>Q", ["a"], r"\(<image3>\) for 1 images"),
        ("<image0>Q", ["a"], "placeholders"),
        ("<image>", ["a"], "column 'messages': no user turn has text; give it a question"),
        ("  ", [], "no user turn has text"),
        ([{"role": "system", "content": "S"}], [], "no user turn has text"),
        ([{"role": "assistant", "content": "S"}], [], "no user turn has text"),
        ([{"role": "wizard", "content": "Q"}], [], "role 'wizard' is unknown; use one of system, user"),
        (["Q"], [], "role None is unknown"),
        ([{"role": "user", "content": [{"type": "video", "video": "v"}]}], [], "block type 'video' is not supported"),
    ],
)
def test_conversations_that_do_not_fit(turns, images, message):
    with pytest.raises(RecordError, match=message):
        read_conversation(turns, images, "messages")


@pytest.mark.parametrize(
    ("content", "blocks"),
    [
        ("<image1>\nfirst: <image2>, last: <image3>", "\nfirst: (image 2), last: (image 3)"),
        ("The ant <image1> walks home <image2>. The ant <image1>?", "The ant (image 1) walks home (image 2). The"),
        ("Which?\n<image2>", "Which?\n(image 2)"),
    ],
)
def test_numbers_of_one_composite_image_are_mentions(content, blocks):
    conversation = read_conversation(content, ["a"], "question", composite=True)
    assert conversation.images == ["a"]
    image, question = conversation.prompt[0]["content"]
    assert image == IMAGE
    assert blocks.removeprefix("\n") in question["text"] or question["text"].startswith(blocks)
    assert "<image" not in question["text"]
    with pytest.raises(RecordError, match="for 1 images"):
        read_conversation(content, ["a"], "question")


def test_numbers_that_name_a_part_of_several_images_are_mentions():
    conversation = read_conversation("What is in <image 2>?", ["a", "b", "c"], "question")
    assert conversation.prompt == [user(IMAGE, IMAGE, IMAGE, text("What is in (image 2)?"))]
    assert conversation.images == ["a", "b", "c"]


def test_a_number_that_comes_again_in_a_later_turn_is_a_mention():
    turns = [("user", "<image1> and <image2>"), ("assistant", "x"), ("user", "in <image1>?")]
    conversation = read_conversation(
        [{"role": role, "content": words} for role, words in turns], ["a", "b"], "messages"
    )
    assert conversation.prompt[2] == user(text("in (image 1)?"))


@pytest.mark.parametrize(
    "leftover",
    ["<video>", "<audio>", "<bbox>", "<ref-object>", "<VIDEO>", "<|image_pad|>", "<|vision_start|>", "<video1>"],
)
def test_placeholders_that_nothing_fills(leftover):
    for turns in (f"{leftover}How many?", [{"role": "system", "content": leftover}, {"role": "user", "content": "Q"}]):
        with pytest.raises(RecordError, match="nothing fills the placeholder") as error:
            read_conversation(turns, [], "messages")
        assert repr(leftover) in str(error.value)
    assert read_conversation("Is a <b> tag or x<y>z?", [], "problem").prompt == [user(text("Is a <b> tag or x<y>z?"))]


@pytest.mark.parametrize("role", ["tool", "function_call", "observation", "tool_response"])
def test_tools_are_rejected(role):
    turns = [{"from": "human", "value": "Q"}, {"from": role, "value": "{}"}, {"from": "gpt", "value": "3"}]
    with pytest.raises(RecordError, match=f"role '{role}' is a tool call or a tool's reply; tools are not supported"):
        read_conversation(turns, [], "conversations")
    calls = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": None, "tool_calls": [{}]}]
    with pytest.raises(RecordError, match="tools are not supported"):
        read_conversation(calls, [], "messages")
