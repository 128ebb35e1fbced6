"""The record formats people already have → one canonical record. Pure: nothing is read from disk.

A format is told from the columns that hold something; null, "" and [] count as absent. Columns that a record's prompt,
images and answer are made of are used up; all others travel along under their own name, or as `original_NAME` where
that is the name of a canonical column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hardsample.data.records.conversation import (
    ROLES,
    Conversation,
    RecordError,
    Turn,
    check_filled,
    read_conversation,
    user_text,
)
from hardsample.data.records.golds import accepted_answers
from hardsample.data.records.image_columns import empty_image_columns, find_images, unread_image
from hardsample.data.records.objects import with_objects
from hardsample.data.records.option_text import (
    DEFAULT_TEMPLATE,
    OPTION_COLUMNS,
    chosen,
    column_options,
    counted,
    letters_of,
    lines_below,
    solution_of,
)
from hardsample.data.records.solutions import (
    VERIFIERS,
    box_format,
    choose_grader,
    inner,
    read_literal,
    solution_text,
    unwrap,
    written_options,
)

CANONICAL_COLUMNS = (
    "record_number",
    "id",
    "prompt",
    "images",
    "solution",
    "answers",
    "ability",
    "grader",
    "options",
    "box_format",
    "image_headers",
)
GOLD_TURN = "the last assistant turn"


@dataclass(frozen=True)
class Format:
    """A known format: the columns that tell it, the one that asks, and where the answer stands, first choice first."""

    name: str
    needs: tuple[str, ...]
    asks: str
    gold: tuple[str, ...]


FORMATS = (
    Format("hardsample", ("prompt", "solution", "grader"), "prompt", ("solution",)),
    Format("orsta", ("prompt", "reward_model.verifier"), "prompt", ("reward_model.ground_truth",)),
    Format("verl", ("prompt", "reward_model"), "prompt", ("reward_model.ground_truth",)),
    Format("paper-scoring", ("prompt", "ground_truth"), "prompt", ("ground_truth",)),
    Format("trl-vlm", ("prompt",), "prompt", ("solution", "answer", "answers", GOLD_TURN)),
    Format("ms-swift", ("messages", "solution"), "messages", ("solution",)),
    Format("llama-factory", ("messages",), "messages", ("answer", "ground_truth", "answers", GOLD_TURN)),
    Format("mm-eureka", ("conversations", "answer"), "conversations", ("answer",)),
    Format("vlm-r1", ("conversations", "id"), "conversations", ("solution", "ground_truth", GOLD_TURN)),
    Format("vlm-r1", ("conversations", "image"), "conversations", ("solution", "ground_truth", GOLD_TURN)),
    Format("llama-factory-sharegpt", ("conversations",), "conversations", ("solution", "ground_truth", GOLD_TURN)),
    Format("chartqa", ("query", "label"), "query", ("label",)),
    Format("ms-swift", ("query",), "query", ("solution", "response")),
    Format("r1v-eval", ("question", "ground_truth"), "question", ("ground_truth",)),
    Format("mathvista", ("pid", "question", "answer"), "question", ("answer",)),
    Format("dynamath", ("question", "answer", "answer_type"), "question", ("answer",)),
    Format("vlmevalkit", ("index", "question", "answer"), "question", ("answer",)),
    Format("mmmu", ("question", "answer", "image_1"), "question", ("answer",)),
    Format("a-okvqa", ("question", "choices", "correct_choice_idx"), "question", ("correct_choice_idx",)),
    Format("ocrbench", ("question", "answer", "question_type"), "question", ("answer",)),
    Format("vqa", ("question", "answers"), "question", ("answer", "answers")),
    Format("math-v", ("question",), "question", ("answer", "solution", "direct_answers")),
    Format("easyr1", ("problem", "answer"), "problem", ("answer",)),
    Format("ms-swift", ("problem",), "problem", ("solution", "response", "ground_truth", "answers")),
    Format("ms-swift", ("query",), "query", ("answer", "answers")),
    Format("alpaca", ("instruction", "output"), "instruction", ("output",)),
)
"""In the order of trial: the first whose columns all hold something, its answer among them, is the record's."""

_NEEDS = [
    (known, [name.split(".") for name in known.needs], [name.split(".") for name in known.gold if name != GOLD_TURN])
    for known in FORMATS
]


@dataclass(frozen=True)
class Record:
    """One canonical record; `images` are still what the record refers to, in the order of the prompt's places.

    `answers` are all accepted answers where there are several, the first of them `solution`. `gold_index` is the number
    and the count of options where the record gives an option by a number. `unread` says where a record without images
    seems to have one.
    """

    format: str
    id: str
    prompt: list[Turn]
    images: list[Any]
    image_column: str
    solution: str
    answers: list[str] | None
    ability: str | None
    grader: str
    options: list[str] | None
    box_format: str | None
    extra: dict[str, Any]
    gold_index: tuple[int, int] | None = None
    unread: str | None = None


def canonical(
    raw: Mapping[str, Any], number: int, grader: str | None = None, options_template: str = DEFAULT_TEMPLATE
) -> Record:
    """Turn one record of any known format into the canonical one.

    Args:
        raw: the record as its file holds it.
        number: its number in the file, from 0; the id of a record that has none.
        grader: the user's `--grader`, see `solutions.choose_grader`.
        options_template: how options that the question does not list are written below it, see `option_text`.

    Raises:
        RecordError: it fits no format, or its prompt, images or answer are missing or do not match.
    """
    raw = with_objects(raw)
    known = detect(raw)
    images, image_columns, composite = find_images(raw)
    turns = _turns(raw, known)
    talk = read_conversation(turns, images, known.asks, composite)
    options, option_column = column_options(raw)
    answers, gold_column = _gold(raw, known, talk, options)
    for answer in answers:
        check_filled(answer, gold_column)
    gold = _resolved(raw, answers, options, talk.prompt)
    ours = known.name == "hardsample" and "image_headers" in raw
    if ours and not absent(raw.get("answers")):
        gold = _Gold(gold.solution, list(raw["answers"]), gold.options)
    if options and not ours:
        question = f"{user_text(talk.prompt)}\n{inner(raw, 'extra_info', 'question') or ''}"
        if below := lines_below(question, options, options_template, gold.several):
            talk = read_conversation(_with_text(turns, below), images, known.asks, composite)
    verifier = _verifier(raw)
    used = {known.asks, *image_columns, gold_column, option_column if gold.options else ""}
    used |= {"id", "record_number", "ability", "box_format", "image_headers"} | ({"answers"} if ours else set())
    used |= {"grader"} if verifier is not None and verifier == raw.get("grader") else set()
    used |= {name for name in OPTION_COLUMNS if absent(raw.get(name)) or raw.get(name) in ("[]", {})}
    used |= empty_image_columns(raw)
    used |= {"history", "system"} if known.asks in ("query", "problem", "instruction") else {"system"}
    used |= {"input"} if known.name == "alpaca" else set()
    # an answer written out beside the solution is kept: fine-tuning imitates it
    spare = {"response": talk.gold} if isinstance(talk.gold, str) and gold_column != GOLD_TURN else {}
    extra = spare | _extra(raw, used)
    return Record(
        format=known.name,
        id=record_id(raw, number),
        prompt=talk.prompt,
        images=talk.images,
        image_column=", ".join(image_columns) or known.asks,
        solution=gold.solution,
        answers=gold.answers,
        ability=None if absent(raw.get("ability")) else solution_text(raw["ability"]),
        grader=choose_grader(verifier or ("choice" if gold.several else None), gold.options, gold.solution, grader),
        options=gold.options,
        box_format=box_format(raw),
        extra=extra,
        gold_index=gold.index,
        unread=None if talk.images or ours else unread_image(extra, user_text(talk.prompt)),
    )


def detect(raw: Mapping[str, Any]) -> Format:
    """The first format whose columns hold something in this record, preferably one that has its answer.

    Raises:
        RecordError: none fits.
    """
    fitting: Format | None = None
    held = {name for name, value in raw.items() if not absent(value)}

    def has(path: list[str]) -> bool:
        return path[0] in held and (len(path) == 1 or not absent(inner(raw, *path)))

    for known, needs, golds in _NEEDS:
        if not all(map(has, needs)):
            continue
        if any(map(has, golds)) or (GOLD_TURN in known.gold and _ends_with_answer(raw[known.asks])):
            return known
        fitting = fitting or known
    if fitting is not None:
        return fitting
    empty = next((known.asks for known in FORMATS if known.asks in raw), None)
    if empty is not None:
        raise RecordError(f"column {empty!r} is empty ({raw[empty]!r}); give it a question")
    columns = ", ".join(map(repr, raw)) or "none"
    raise RecordError(f"no known format has its columns ({columns}); the question belongs in 'messages' or 'problem'")


def known_formats() -> str:
    """The formats and the columns that tell them, for a message."""
    return "; ".join(f"{known.name}: {', '.join(known.needs)}" for known in FORMATS)


def record_id(raw: Mapping[str, Any], number: int) -> str:
    """The record's id as text, its number where it has none.

    Raises:
        RecordError: the id is a list or a mapping.
    """
    value = raw.get("id")
    if absent(value):
        return str(number)
    if not isinstance(value, str | int | float):
        raise RecordError(f"column 'id' holds {value!r}; give a text or a number")
    return solution_text(value)


def extra_name(name: str, taken: Mapping[str, Any]) -> str:
    """Under which name a column travels: its own, or with `original_` before it where that one is ours."""
    if name not in CANONICAL_COLUMNS:
        return name
    while name in CANONICAL_COLUMNS or name in taken:
        name = f"original_{name}"
    return name


def absent(value: Any) -> bool:
    """null, NaN, "" and [] count as absent, and so does text of blanks only."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, float) and value != value:
        return True
    return value is None or (isinstance(value, list | tuple) and not value)


def _turns(raw: Mapping[str, Any], known: Format) -> list[Any]:
    """What is asked, with ms-swift's `history` and a `system` column put in front."""
    asked = raw[known.asks]
    if isinstance(asked, str) and known.asks in ("prompt", "messages", "conversations"):
        written = read_literal(asked)  # a column of text holds turns as JSON
        named = isinstance(written, list) and all(isinstance(turn, dict) and len(turn) > 1 for turn in written)
        asked = written if named and any("role" in turn or "from" in turn for turn in written) else asked
    if known.name == "alpaca" and not absent(raw.get("input")):
        asked = f"{asked}\n{raw['input']}"
    if known.asks == "question" and isinstance(asked, str) and _is_context(raw):
        asked = f"Hint: {raw['hint']}\n{asked}"
    turns: list[Any] = list(asked) if isinstance(asked, list | tuple) else [{"role": "user", "content": asked}]
    history = raw.get("history") if known.asks in ("query", "instruction") else None
    past = [pair for pair in history or [] if isinstance(pair, list | tuple) and len(pair) == 2]
    roles = ("user", "assistant")
    turns = [{"role": role, "content": text} for pair in past for role, text in zip(roles, pair, strict=True)] + turns
    system = raw.get("system")
    has_one = any(isinstance(turn, dict) and "system" in (turn.get("role"), turn.get("from")) for turn in turns)
    return turns if absent(system) or has_one else [{"role": "system", "content": system}, *turns]


def _is_context(raw: Mapping[str, Any]) -> bool:
    """Whether `hint` belongs to the question, as ScienceQA's does; elsewhere it may give the answer away."""
    science = "choices" in raw and bool({"lecture", "task", "skill"} & set(raw))
    return science and isinstance(raw.get("hint"), str) and not absent(raw["hint"])


def _with_text(turns: list[Any], text: str) -> list[Any]:
    """The turns with a text below the last user's."""
    place = max(number for number, turn in enumerate(turns) if _role(turn) == "user")
    turn = turns[place]
    name = "content" if "content" in turn else "value"
    content = turn[name]
    if isinstance(content, list | tuple):
        content = [*content, {"type": "text", "text": f"\n{text}"}]
    else:
        content = f"{str(content).rstrip()}\n{text}"
    return [*turns[:place], {**turn, name: content}, *turns[place + 1 :]]


def _role(turn: Any) -> str | None:
    return ROLES.get(str(turn.get("role") or turn.get("from"))) if isinstance(turn, Mapping) else None


def _ends_with_answer(asked: Any) -> bool:
    if isinstance(asked, str):
        asked = read_literal(asked)
    return isinstance(asked, list | tuple) and bool(asked) and _role(asked[-1]) == "assistant"


def _gold(
    raw: Mapping[str, Any], known: Format, talk: Conversation, options: list[str] | None
) -> tuple[list[str], str]:
    """The accepted answers and the column they are from: with options the first column that means one of them."""
    held = [
        (value, name)
        for name in dict.fromkeys((*known.gold, *(("answer",) if options else ())))
        if not absent(value := talk.gold if name == GOLD_TURN else inner(raw, *name.split(".")))
    ]
    if not held:
        raise RecordError(
            f"no solution: {' and '.join(map(repr, known.gold))} hold nothing; give the gold answer there"
        )
    if options:
        for value, name in held[1:] and held:
            try:
                answers = accepted_answers(value, name)
            except RecordError:
                continue
            if chosen(answers, options, indices=True):
                return answers, name
    value, name = held[0]
    answers = accepted_answers(value, name)
    others = raw.get("answers")
    if name == "answer" and not absent(others):  # annotators' answers beside the one that they agree on
        accepted = accepted_answers(others, "answers")
        answers = list(dict.fromkeys([*answers, *accepted])) if set(answers) & set(accepted) else answers
    return answers, name


@dataclass(frozen=True)
class _Gold:
    """What a record's answer comes to, once its options are known."""

    solution: str
    answers: list[str] | None
    options: list[str] | None
    index: tuple[int, int] | None = None
    several: bool = False


def _resolved(raw: Mapping[str, Any], answers: list[str], options: list[str] | None, prompt: list[Turn]) -> _Gold:
    """The solution, and the options: a column's, those of the question if the gold is one of them, or yes and no."""
    accepted = answers if len(answers) > 1 else None
    if options:
        number = counted(answers, options)
        choice = chosen(answers, options, indices=True)
        index = None if number is None else (number, len(options))
        if choice is None:
            return _Gold(answers[0], accepted, options, index)
        return _Gold(solution_of(choice, answers, options), None, options, index, len(choice.places) > 1)
    # verl keeps the question without its instruction, which would stick to the last option
    question = inner(raw, "extra_info", "question")
    written = written_options(question if isinstance(question, str) else user_text(prompt))
    if written and (choice := chosen(answers, written, indices=False)):
        return _Gold(solution_of(choice, answers, written), None, written, None, len(choice.places) > 1)
    if letters := letters_of(answers):
        return _Gold(letters, None, None, None, True)
    if accepted is None and unwrap(answers[0]).casefold().rstrip(".") in ("yes", "no"):
        return _Gold(answers[0], None, ["Yes", "No"])
    return _Gold(answers[0], accepted, None)


def _verifier(raw: Mapping[str, Any]) -> Any:
    """What the record calls its verifier, where it is a name we know."""
    named = (
        raw.get("grader"),
        raw.get("verifier"),
        inner(raw, "reward_model", "verifier"),
        raw.get("accu_reward_method"),
    )
    return next((v for v in named if isinstance(v, str) and v.lower().replace("-", "_") in VERIFIERS), None)


def _extra(raw: Mapping[str, Any], used: set[str]) -> dict[str, Any]:
    return {
        extra_name(name, raw): value
        for name, value in raw.items()
        if name not in used and not (name in CANONICAL_COLUMNS and absent(value))
    }
