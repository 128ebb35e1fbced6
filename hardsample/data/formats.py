"""Convert records of the common formats to one canonical record. Pure: nothing is read from disk.

A format is recognised by its non-empty columns; null, "" and [] count as empty. The columns that the prompt, images and
answer come from are consumed. All other columns are kept under their own name, or as `original_NAME` if that is the
name of a canonical column.
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
    letters_of,
    option_lines,
    option_number,
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
    """A known format: the columns that identify it, the question's column, and the answer's, in order of preference."""

    name: str
    needs: tuple[str, ...]
    question: str
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
"""Tried in this order: a record has the first format whose columns, including its answer, are all non-empty."""

_NEEDS = [
    (known, [name.split(".") for name in known.needs], [name.split(".") for name in known.gold if name != GOLD_TURN])
    for known in FORMATS
]


@dataclass(frozen=True)
class Record:
    """One canonical record; `images` are still the record's own references, in the order of the prompt's placeholders.

    `answers` are all accepted answers if there are several; the first of them is `solution`. `gold_index` is the index
    and the number of options if the record gives an option by its index. `unread` says where a record without images
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
        raw: the record as it is in its file.
        number: its number in the file, from 0; the id of a record without one.
        grader: the user's `--grader`, see `solutions.choose_grader`.
        options_template: how options that the question does not list are written below it, see `option_text`.

    Raises:
        RecordError: it has no known format, or its prompt, images or answer are missing or do not match.
    """
    raw = with_objects(raw)
    known = detect(raw)
    images, image_columns, composite = find_images(raw)
    turns = _turns(raw, known)
    conversation = read_conversation(turns, images, known.question, composite)
    options, option_column = column_options(raw)
    answers, gold_column = _gold(raw, known, conversation, options)
    for answer in answers:
        check_filled(answer, gold_column)
    gold = _resolve_gold(raw, answers, options, conversation.prompt)
    is_canonical = known.name == "hardsample" and "image_headers" in raw
    if is_canonical and not absent(raw.get("answers")):
        gold = _Gold(gold.solution, list(raw["answers"]), gold.options)
    if options and not is_canonical:
        question = f"{user_text(conversation.prompt)}\n{inner(raw, 'extra_info', 'question') or ''}"
        if lines := option_lines(question, options, options_template, gold.several):
            conversation = read_conversation(_with_text(turns, lines), images, known.question, composite)
    verifier = _verifier(raw)
    used = {known.question, *image_columns, gold_column, option_column if gold.options else ""}
    used |= {"id", "record_number", "ability", "box_format", "image_headers"} | ({"answers"} if is_canonical else set())
    used |= {"grader"} if verifier is not None and verifier == raw.get("grader") else set()
    used |= {name for name in OPTION_COLUMNS if absent(raw.get(name)) or raw.get(name) in ("[]", {})}
    used |= empty_image_columns(raw)
    used |= {"history", "system"} if known.question in ("query", "problem", "instruction") else {"system"}
    used |= {"input"} if known.name == "alpaca" else set()
    # a written-out answer beside the solution is kept, for fine-tuning
    has_response = isinstance(conversation.gold, str) and gold_column != GOLD_TURN
    extra = ({"response": conversation.gold} if has_response else {}) | _extra(raw, used)
    return Record(
        format=known.name,
        id=record_id(raw, number),
        prompt=conversation.prompt,
        images=conversation.images,
        image_column=", ".join(image_columns) or known.question,
        solution=gold.solution,
        answers=gold.answers,
        ability=None if absent(raw.get("ability")) else solution_text(raw["ability"]),
        grader=choose_grader(verifier or ("choice" if gold.several else None), gold.options, gold.solution, grader),
        options=gold.options,
        box_format=box_format(raw),
        extra=extra,
        gold_index=gold.index,
        unread=None if conversation.images or is_canonical else unread_image(extra, user_text(conversation.prompt)),
    )


def detect(raw: Mapping[str, Any]) -> Format:
    """Return the first format whose columns are non-empty in this record, preferably one with its answer.

    Raises:
        RecordError: no format matches.
    """
    without_answer: Format | None = None
    filled = {name for name, value in raw.items() if not absent(value)}

    def has(path: list[str]) -> bool:
        return path[0] in filled and (len(path) == 1 or not absent(inner(raw, *path)))

    for known, needs, golds in _NEEDS:
        if not all(map(has, needs)):
            continue
        if any(map(has, golds)) or (GOLD_TURN in known.gold and _ends_with_answer(raw[known.question])):
            return known
        without_answer = without_answer or known
    if without_answer is not None:
        return without_answer
    empty = next((known.question for known in FORMATS if known.question in raw), None)
    if empty is not None:
        raise RecordError(f"column {empty!r} is empty ({raw[empty]!r}); give it a question")
    columns = ", ".join(map(repr, raw)) or "none"
    raise RecordError(f"no known format has these columns ({columns}); put the question in 'messages' or 'problem'")


def known_formats() -> str:
    """Return the formats and their columns, for a message."""
    return "; ".join(f"{known.name}: {', '.join(known.needs)}" for known in FORMATS)


def record_id(raw: Mapping[str, Any], number: int) -> str:
    """Return the record's id as text, or its number if it has none.

    Raises:
        RecordError: the id is a list or a mapping.
    """
    value = raw.get("id")
    if absent(value):
        return str(number)
    if not isinstance(value, str | int | float):
        raise RecordError(f"column 'id' holds {value!r}; give a string or a number")
    return solution_text(value)


def extra_name(name: str, taken: Mapping[str, Any]) -> str:
    """Return the name under which a column is kept: its own, prefixed with `original_` if that is a canonical name."""
    if name not in CANONICAL_COLUMNS:
        return name
    while name in CANONICAL_COLUMNS or name in taken:
        name = f"original_{name}"
    return name


def absent(value: Any) -> bool:
    """Return whether a value is empty: null, NaN, "", [] or only whitespace."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, float) and value != value:
        return True
    return value is None or (isinstance(value, list | tuple) and not value)


def _turns(raw: Mapping[str, Any], known: Format) -> list[Any]:
    """Return the turns of the question, preceded by ms-swift's `history` and a `system` column."""
    question = raw[known.question]
    if isinstance(question, str) and known.question in ("prompt", "messages", "conversations"):
        parsed = read_literal(question)  # turns as JSON text
        are_turns = isinstance(parsed, list) and all(isinstance(turn, dict) and len(turn) > 1 for turn in parsed)
        question = parsed if are_turns and any("role" in turn or "from" in turn for turn in parsed) else question
    if known.name == "alpaca" and not absent(raw.get("input")):
        question = f"{question}\n{raw['input']}"
    if known.question == "question" and isinstance(question, str) and _hint_is_context(raw):
        question = f"Hint: {raw['hint']}\n{question}"
    is_list = isinstance(question, list | tuple)
    turns: list[Any] = list(question) if is_list else [{"role": "user", "content": question}]
    history = raw.get("history") if known.question in ("query", "instruction") else None
    past = [pair for pair in history or [] if isinstance(pair, list | tuple) and len(pair) == 2]
    roles = ("user", "assistant")
    turns = [{"role": role, "content": text} for pair in past for role, text in zip(roles, pair, strict=True)] + turns
    system = raw.get("system")
    has_system = any(isinstance(turn, dict) and "system" in (turn.get("role"), turn.get("from")) for turn in turns)
    return turns if absent(system) or has_system else [{"role": "system", "content": system}, *turns]


def _hint_is_context(raw: Mapping[str, Any]) -> bool:
    """Return whether `hint` belongs to the question, as ScienceQA's does; elsewhere it may give the answer away."""
    science = "choices" in raw and bool({"lecture", "task", "skill"} & set(raw))
    return science and isinstance(raw.get("hint"), str) and not absent(raw["hint"])


def _with_text(turns: list[Any], text: str) -> list[Any]:
    """Return the turns with a text appended to the last user turn."""
    last = max(index for index, turn in enumerate(turns) if _role(turn) == "user")
    turn = turns[last]
    name = "content" if "content" in turn else "value"
    content = turn[name]
    if isinstance(content, list | tuple):
        content = [*content, {"type": "text", "text": f"\n{text}"}]
    else:
        content = f"{str(content).rstrip()}\n{text}"
    return [*turns[:last], {**turn, name: content}, *turns[last + 1 :]]


def _role(turn: Any) -> str | None:
    return ROLES.get(str(turn.get("role") or turn.get("from"))) if isinstance(turn, Mapping) else None


def _ends_with_answer(turns: Any) -> bool:
    if isinstance(turns, str):
        turns = read_literal(turns)
    return isinstance(turns, list | tuple) and bool(turns) and _role(turns[-1]) == "assistant"


def _gold(
    raw: Mapping[str, Any], known: Format, conversation: Conversation, options: list[str] | None
) -> tuple[list[str], str]:
    """Return the accepted answers and their column: with options, the first column that names one of them."""
    candidates = [
        (value, name)
        for name in dict.fromkeys((*known.gold, *(("answer",) if options else ())))
        if not absent(value := conversation.gold if name == GOLD_TURN else inner(raw, *name.split(".")))
    ]
    if not candidates:
        raise RecordError(f"no solution in {' or '.join(map(repr, known.gold))}; give the gold answer there")
    if options:
        for value, name in candidates[1:] and candidates:
            try:
                answers = accepted_answers(value, name)
            except RecordError:
                continue  # this column is no answer; if none is, the last line below raises for the first
            if chosen(answers, options, allow_index=True):
                return answers, name
    value, name = candidates[0]
    answers = accepted_answers(value, name)
    all_answers = raw.get("answers")
    if name == "answer" and not absent(all_answers):  # annotators' answers beside the one they agree on
        accepted = accepted_answers(all_answers, "answers")
        answers = list(dict.fromkeys([*answers, *accepted])) if set(answers) & set(accepted) else answers
    return answers, name


@dataclass(frozen=True)
class _Gold:
    """A record's gold answer in terms of its options."""

    solution: str
    answers: list[str] | None
    options: list[str] | None
    index: tuple[int, int] | None = None
    several: bool = False


def _resolve_gold(raw: Mapping[str, Any], answers: list[str], options: list[str] | None, prompt: list[Turn]) -> _Gold:
    """Return the solution and the options: a column's, the question's if the gold is one of them, or yes and no."""
    accepted = answers if len(answers) > 1 else None
    if options:
        number = option_number(answers, options)
        choice = chosen(answers, options, allow_index=True)
        index = None if number is None else (number, len(options))
        if choice is None:
            return _Gold(answers[0], accepted, options, index)
        return _Gold(solution_of(choice, answers, options), None, options, index, len(choice.indices) > 1)
    # verl keeps the question without its instruction, which would otherwise be read as part of the last option
    question = inner(raw, "extra_info", "question")
    written = written_options(question if isinstance(question, str) else user_text(prompt))
    if written and (choice := chosen(answers, written, allow_index=False)):
        return _Gold(solution_of(choice, answers, written), None, written, None, len(choice.indices) > 1)
    if letters := letters_of(answers):
        return _Gold(letters, None, None, None, True)
    if accepted is None and unwrap(answers[0]).casefold().rstrip(".") in ("yes", "no"):
        return _Gold(answers[0], None, ["Yes", "No"])
    return _Gold(answers[0], accepted, None)


def _verifier(raw: Mapping[str, Any]) -> Any:
    """Return the name of the record's verifier, if it is a known one."""
    names = (
        raw.get("grader"),
        raw.get("verifier"),
        inner(raw, "reward_model", "verifier"),
        raw.get("accu_reward_method"),
    )
    return next((n for n in names if isinstance(n, str) and n.lower().replace("-", "_") in VERIFIERS), None)


def _extra(raw: Mapping[str, Any], used: set[str]) -> dict[str, Any]:
    return {
        extra_name(name, raw): value
        for name, value in raw.items()
        if name not in used and not (name in CANONICAL_COLUMNS and absent(value))
    }
