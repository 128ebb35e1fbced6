"""Every example file of the known formats, record by record, and the 445 real questions."""

import json
from pathlib import Path

import pytest

from hardsample.data.images import open_image
from hardsample.data.loading import load

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
DEV = SHARED / "dev"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the example files are not beside the repository ({SHARED})"
)

BEVERAGES = (
    "180 people were surveyed about their beverage preferences. The results are displayed in the Venn diagram below."
)
BEVERAGES += " What is the sum of people who prefer only Coffee or only Tea?"
COLOUR = "What is the color of the missing part denoted with a question mark?"
COLOUR_OPTIONS = "\nOptions:\n(A) yellow\n(B) red\n(C) purple\n(D) green"
SQUARES = (
    "Count total number of squares in the image. Answer with only the number in numerical format in curly brackets"
)
SQUARES += " e.g. {3}."
RECEIPT = "What is the total amount on this receipt? Answer with the number only."
BOXES = "There is a box with items of 2 different colors and a black square."
TRUE_FALSE = "\nIs this statement true or false of the image? Answer true or false."
PAIR = f"Left picture: is the statement '{BOXES}' true?"
PAIR += " Right picture: is 'There are three triangles touching the edge' true? Answer two words."
FIND_X = "Find x.\nOptions:\n(A) 12\n(B) 13\n(C) 14\n(D) 15"
VENN, GRID = "images/dynamath/image464.png", "images/puzzlevqa/color_grid_0032.png"
NESTED = "images/blindtest/nested_squares_depth_2_image_2_thickness_4.png"
RECEIPT_IMAGE, DIAGRAM = "images/sroie/324.jpg", "images/geometry3k-examples/b17b539d_img_diagram.png"
LEFT, RIGHT = "images/nlvr/dev-662-2-0.png", "images/nlvr/dev-1570-3-0.png"
INSTRUCTION = " You FIRST think about the reasoning process as an internal monologue and then provide the final answer."
INSTRUCTION += (
    " The reasoning process MUST BE enclosed within <think> </think> tags. The final answer MUST BE put in \\boxed{}."
)
TRL_SYSTEM = "A conversation between user and assistant. The assistant first thinks, then answers."

BELOW = [("text", "\nA. yellow\nB. red\nC. purple\nD. green\nAnswer with the letter of the right option.")]
COLOURS = ["yellow", "red", "purple", "green"]
NUMBERS = ["12", "13", "14", "15"]


def q(text, images, solution, grader, options=None, before="", after="", id=None):
    """Return the expected record of a single user turn, images before the text."""
    content = [("image", None)] * len(images) + [("text", before + text + after)]
    return [("user", content)], images, solution, grader, options, id


FOUR = [
    q(BEVERAGES, [VENN], "160", "math"),
    q(COLOUR + COLOUR_OPTIONS, [GRID], "purple", "choice", COLOURS),
    q(SQUARES, [NESTED], "2", "math"),
    q(RECEIPT, [RECEIPT_IMAGE], "28.90", "math"),
]
LINES = [q(turns[0][1][-1][1], images, f"\\boxed{{{gold}}}", grader, options, before="\n")
         for turns, images, gold, grader, options, _ in FOUR]  # fmt: skip
TWO_TURNS = (
    [
        ("user", [("image", None), ("text", BOXES + TRUE_FALSE)]),
        ("assistant", [("text", "false")]),
        ("user", [("text", "There are three triangles touching the edge" + TRUE_FALSE), ("image", None)]),
    ],
    [LEFT, RIGHT],
    "false",
    "choice",
    None,
    None,
)
LLAMA_FACTORY = [*FOUR, TWO_TURNS]
ORSTA = [(*record[:3], "math", *record[4:]) for record in LINES]
VERL = [q(turns[0][1][-1][1], *rest[:4], after=INSTRUCTION) for turns, *rest in FOUR]
FIND = q(FIND_X, [DIAGRAM], "B", "choice", NUMBERS)

EXPECTED = {
    "dynamath_native.json": ("dynamath", [(*record[:5], str(i)) for i, record in enumerate(FOUR[:3], 1)]),
    "easyr1.jsonl": (
        "easyr1",
        [*FOUR, q(PAIR, [LEFT, RIGHT], "false false", "text"), q("What is 2 + 2?", [], "4", "math")],
    ),
    "geometry3k.parquet": ("easyr1", [*FOUR, FIND]),
    "llama_factory.json": ("llama-factory", LLAMA_FACTORY),
    "llama_factory.jsonl": ("llama-factory", LLAMA_FACTORY),
    "llama_factory_sharegpt.jsonl": ("llama-factory-sharegpt", FOUR[:3]),
    "mathv_native.jsonl": (
        "math-v",
        [
            ([("user", [("text", text + "\n"), ("image", None), *BELOW[:1] * (i == 2)])], *record[1:5], str(i))
            for i, (text, record) in enumerate(zip((BEVERAGES, COLOUR, SQUARES), FOUR, strict=False), 1)
        ],
    ),
    "ms_swift.jsonl": (
        "ms-swift",
        [
            *LINES[:3],
            (
                [
                    ("system", [("text", "You are a helpful assistant.")]),
                    ("user", [("image", None), ("text", RECEIPT)]),
                ],
                [RECEIPT_IMAGE],
                "<answer> 28.90 </answer>",
                "math",
                None,
                None,
            ),
            q(PAIR, [LEFT, RIGHT], "<answer> false false </answer>", "text"),
        ],
    ),
    "ms_swift_variants.jsonl": (
        "ms-swift",
        [
            *FOUR,
            q(BOXES + TRUE_FALSE, [LEFT], "false", "choice"),
            ([("user", [("text", BEVERAGES), ("image", None)])], [VENN], "160", "math", None, None),
        ],
    ),
    "orsta.jsonl": ("orsta", ORSTA),
    "orsta.parquet": ("orsta", [*ORSTA, q(FIND_X, [DIAGRAM], "\\boxed{B}", "math", NUMBERS, before="\n")]),
    "paper_prompt_image_paths.jsonl": ("paper-scoring", LINES),
    "r1v_eval.jsonl": ("r1v-eval", FOUR[:3]),
    "trl_vlm.jsonl": (
        "trl-vlm",
        [
            ([("system", [("text", TRL_SYSTEM)]), *FOUR[0][0]], *FOUR[0][1:]),
            ([("system", [("text", TRL_SYSTEM)]), *FOUR[1][0]], *FOUR[1][1:]),
            FOUR[2],
            q(PAIR, [LEFT, RIGHT], "false false", "text"),
            FIND,
        ],
    ),
    "verl.jsonl": ("verl", VERL),
    "verl.parquet": ("verl", [*VERL, q(FIND_X, [DIAGRAM], "B", "choice", NUMBERS, after=INSTRUCTION)]),
    "vlm_r1.jsonl": (
        "vlm-r1",
        [
            (*FOUR[0][:5], "1"),
            (*FOUR[1][:5], "2"),
            (*FOUR[2][:5], "3"),
            q(PAIR, [LEFT, RIGHT], "false false", "text", id="4"),
            q("What is 2 + 2?", [], "<answer>4</answer>", "math", id="5"),
        ],
    ),
}


@needs_shared
@pytest.mark.parametrize("name", EXPECTED)
def test_shared_file(name):
    """Every record of every example file, exactly; images by the size of what they open to."""
    known, records = EXPECTED[name]
    loaded = load(SHARED / "formats" / name, image_root=DEV)
    assert (loaded.rejected, loaded.format) == ([], known)
    assert loaded.source == str((SHARED / "formats" / name).resolve())
    assert len(loaded.dataset) == len(records)
    for number, (row, (turns, images, solution, grader, options, id)) in enumerate(
        zip(loaded.dataset, records, strict=True)
    ):
        got = [(turn["role"], [(block["type"], block["text"]) for block in turn["content"]]) for turn in row["prompt"]]
        assert got == turns
        assert (row["record_number"], row["id"]) == (number, str(number) if id is None else id)
        assert (row["solution"], row["grader"], row["options"]) == (solution, grader, options)
        assert (row["ability"], row["box_format"]) == ("math" if known in ("verl", "orsta") else None, None)
        for image, path in zip(row["images"], images, strict=True):
            assert open_image(image).tobytes() == open_image(DEV / path).tobytes()
            assert image["bytes"] is not None or image["path"] == str((DEV / path).resolve())


@needs_shared
def test_every_shared_file_is_expected():
    assert {path.name for path in (SHARED / "formats").iterdir()} == set(EXPECTED)


@needs_shared
def test_dev_set():
    path = DEV / "dev.jsonl"
    raw = [json.loads(line) for line in path.read_text().splitlines()]
    loaded = load(path)
    assert (len(loaded.dataset), loaded.rejected, loaded.format) == (445, [], "ms-swift")
    assert loaded.dataset["id"] == [record["id"] for record in raw]
    assert loaded.dataset["ability"] == [record["ability"] for record in raw]
    assert loaded.dataset["solution"] == [record["solution"] for record in raw]
    for name in ("source", "level", "pass_rate", "problem_type", "model_correct", "parameter", "n_raters", "field"):
        assert loaded.dataset[name] == [record.get(name) for record in raw]
    graders = {record["id"]: grader for record, grader in zip(raw, loaded.dataset["grader"], strict=True)}
    assert {name: list(graders.values()).count(name) for name in set(graders.values())} == {
        "math": 213,
        "choice": 195,
        "text": 37,
    }
    choices = [row for row in loaded.dataset if row["source"] == "puzzlevqa"]
    assert len(choices) == 60
    assert all(row["grader"] == "choice" for row in choices)
    assert all(row["options"] == record["options"] for row, record in zip(
        choices, [record for record in raw if record["source"] == "puzzlevqa"], strict=True))  # fmt: skip
