"""The record formats people already have → one canonical record. Pure: nothing is read from disk.

A format is told from the columns that hold something; null, "" and [] count as absent. Columns that a record's prompt,
pictures and answer are made of are used up; all others travel along under their own name, or as `original_NAME` where
that is the name of a canonical column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hardsample.conversation import Conversation, RecordError, Turn, read_conversation, user_text
from hardsample.solutions import (
    VERIFIERS,
    box_format,
    choose_grader,
    given_options,
    inner,
    is_among,
    solution_text,
    written_options,
)

CANONICAL_COLUMNS = (
    "record_number",
    "id",
    "prompt",
    "images",
    "solution",
    "ability",
    "grader",
    "options",
    "box_format",
    "image_headers",
)
IMAGE_COLUMNS = ("decoded_image", "images", "image", "image_paths", "image_path")
OPTION_COLUMNS = ("options", "choices")
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
    Format("trl-vlm", ("prompt",), "prompt", ("solution", "answer", GOLD_TURN)),
    Format("ms-swift", ("messages", "solution"), "messages", ("solution",)),
    Format("llama-factory", ("messages",), "messages", (GOLD_TURN, "answer", "ground_truth")),
    Format("vlm-r1", ("conversations", "id"), "conversations", ("solution", GOLD_TURN)),
    Format("vlm-r1", ("conversations", "image"), "conversations", ("solution", GOLD_TURN)),
    Format("llama-factory-sharegpt", ("conversations",), "conversations", ("solution", GOLD_TURN)),
    Format("ms-swift", ("query",), "query", ("solution", "response")),
    Format("r1v-eval", ("question", "ground_truth"), "question", ("ground_truth",)),
    Format("dynamath", ("question", "answer", "answer_type"), "question", ("answer",)),
    Format("vlmevalkit", ("index", "question", "answer"), "question", ("answer",)),
    Format("math-v", ("question",), "question", ("answer", "solution")),
    Format("easyr1", ("problem", "answer"), "problem", ("answer",)),
    Format("ms-swift", ("problem",), "problem", ("solution", "response", "ground_truth")),
)
"""In the order of trial: the first whose columns all hold something is the record's."""

_NEEDS = [(known, [name.split(".") for name in known.needs]) for known in FORMATS]


@dataclass(frozen=True)
class Record:
    """One canonical record; `images` are still what the record refers to, in the order of the prompt's places."""

    format: str
    id: str
    prompt: list[Turn]
    images: list[Any]
    image_column: str
    solution: str
    ability: str | None
    grader: str
    options: list[str] | None
    box_format: str | None
    extra: dict[str, Any]


def canonical(raw: Mapping[str, Any], number: int, grader: str | None = None) -> Record:
    """Turn one record of any known format into the canonical one.

    Args:
        raw: the record as its file holds it.
        number: its number in the file, from 0; the id of a record that has none.
        grader: the user's `--grader`, see `solutions.choose_grader`.

    Raises:
        RecordError: it fits no format, or its prompt, pictures or answer are missing or do not match.
    """
    known = detect(raw)
    image_column = next((name for name in IMAGE_COLUMNS if _holds_images(raw.get(name))), "")
    talk = read_conversation(_turns(raw, known), _as_list(raw.get(image_column)), known.asks)
    solution, gold_column = _gold(raw, known, talk)
    verifier = _verifier(raw)
    options, option_column = _options(raw, talk.prompt, solution)
    used = {known.asks, image_column, gold_column, option_column}
    used |= {"id", "record_number", "ability", "box_format", "image_headers"}
    used |= {"grader"} if verifier is not None and verifier == raw.get("grader") else set()
    used |= {name for name in OPTION_COLUMNS if absent(raw.get(name))}
    used |= {name for name in IMAGE_COLUMNS if not _as_list(raw.get(name))}
    used |= {"history", "system"} if known.asks in ("query", "problem") else {"system"}
    # an answer written out beside the solution is kept: fine-tuning imitates it
    spare = {"response": talk.gold} if isinstance(talk.gold, str) and gold_column != GOLD_TURN else {}
    return Record(
        format=known.name,
        id=record_id(raw, number),
        prompt=talk.prompt,
        images=talk.images,
        image_column=image_column or known.asks,
        solution=solution,
        ability=None if absent(raw.get("ability")) else solution_text(raw["ability"]),
        grader=choose_grader(verifier, options, solution, grader),
        options=options,
        box_format=box_format(raw),
        extra=spare | _extra(raw, used),
    )


def detect(raw: Mapping[str, Any]) -> Format:
    """The first format whose columns hold something in this record.

    Raises:
        RecordError: none fits.
    """
    for known, paths in _NEEDS:
        if not any(absent(inner(raw, *path)) for path in paths):
            return known
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
    """null, "" and [] count as absent, and so does text of blanks only."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list | tuple) and not value)


def _turns(raw: Mapping[str, Any], known: Format) -> Any:
    """What is asked, with ms-swift's `history` and a `system` column put in front."""
    asked = raw[known.asks]
    turns: list[Any] = list(asked) if isinstance(asked, list | tuple) else [{"role": "user", "content": asked}]
    history = raw.get("history") if known.asks == "query" else None
    past = [pair for pair in history or [] if isinstance(pair, list | tuple) and len(pair) == 2]
    roles = ("user", "assistant")
    turns = [{"role": role, "content": text} for pair in past for role, text in zip(roles, pair, strict=True)] + turns
    system = raw.get("system")
    has_one = any(isinstance(turn, dict) and "system" in (turn.get("role"), turn.get("from")) for turn in turns)
    return turns if absent(system) or has_one else [{"role": "system", "content": system}, *turns]


def _gold(raw: Mapping[str, Any], known: Format, talk: Conversation) -> tuple[str, str]:
    """The solution and the column it is from."""
    for name in known.gold:
        value = talk.gold if name == GOLD_TURN else inner(raw, *name.split("."))
        if not absent(value):
            return solution_text(value), name
    raise RecordError(f"no solution: {' and '.join(map(repr, known.gold))} hold nothing; give the gold answer there")


def _verifier(raw: Mapping[str, Any]) -> Any:
    """What the record calls its verifier, where it is a name we know."""
    named = (
        raw.get("grader"),
        raw.get("verifier"),
        inner(raw, "reward_model", "verifier"),
        raw.get("accu_reward_method"),
    )
    return next((v for v in named if isinstance(v, str) and v.lower().replace("-", "_") in VERIFIERS), None)


def _options(raw: Mapping[str, Any], prompt: list[Turn], solution: str) -> tuple[list[str] | None, str]:
    """The options and their column: a column's, else those written in the question if the solution is one of them."""
    for name in OPTION_COLUMNS:
        if options := given_options(raw.get(name)):
            return options, name
    # verl keeps the question without its instruction, which would stick to the last option
    question = inner(raw, "extra_info", "question")
    written = written_options(question if isinstance(question, str) else user_text(prompt))
    return (written if written and is_among(solution, written) else None), ""


def _extra(raw: Mapping[str, Any], used: set[str]) -> dict[str, Any]:
    return {
        extra_name(name, raw): value
        for name, value in raw.items()
        if name not in used and not (name in CANONICAL_COLUMNS and absent(value))
    }


def _holds_images(value: Any) -> bool:
    return any(not absent(item) and not _empty_ref(item) for item in _as_list(value))


def _as_list(value: Any) -> list[Any]:
    if absent(value) or _empty_ref(value):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _empty_ref(value: Any) -> bool:
    return isinstance(value, Mapping) and all(part is None for part in value.values())
