"""The model for lmms-eval: found by name, and its answers those of the engine, whether lmms-eval is there or not."""

import logging
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest

from hardsample.data.images import open_image
from hardsample.demo import load_split
from hardsample.engines.protocol import Request
from hardsample.evaluation.lmms_eval import NAME, Answering, cut, manifest, read_prompt, read_settings


def registry():
    """lmms-eval's registry of models; skips where it cannot be had."""
    pytest.importorskip(
        "lmms_eval.models.registry_v2",
        reason="lmms-eval is not installed here, so its own registry is not asked: pip install lmms-eval",
        exc_type=ImportError,
    )
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    return ModelRegistryV2()


@pytest.fixture(scope="module")
def records():
    return list(load_split("demo", 6))


@pytest.fixture(scope="module")
def answering(records):
    model = Answering("demo", batch_size=4, device="cpu")
    model.task_dict = {"demo": {"test": records}}
    return model


def asked(records, **settings):
    """Requests as lmms-eval makes them for a simple model: only `args` is read."""

    def visuals(record):
        return [open_image(ref) for ref in record["images"]]

    def text(record):
        return "\n".join(b["text"] for turn in record["prompt"] for b in turn["content"] if b["type"] == "text")

    return [
        SimpleNamespace(args=(text(record), settings, visuals, number, "demo", "test"))
        for number, record in enumerate(records)
    ]


def test_the_entry_point_is_found_by_name():
    plugins = entry_points(group="lmms_eval.models", name=NAME)
    assert {plugin.value for plugin in plugins} == {"hardsample.evaluation.lmms_eval:manifest"}, (
        "this environment was made before the entry point: `make setup` installs it again"
    )
    assert next(iter(plugins)).load() is manifest


def test_lmms_eval_finds_the_model_by_name(records):
    models = registry()
    models.load_entrypoint_manifests()
    assert NAME in models.list_canonical_model_ids()
    made = models.get_model_class(NAME)
    model = made.create_from_arg_string("pretrained=demo", {"batch_size": 4, "max_batch_size": None, "device": "cpu"})
    model.task_dict = {"demo": {"test": records}}
    assert len(list(filter(None, model.generate_until(asked(records, max_new_tokens=16))))) == len(records)


def test_greedy_answers_are_those_of_the_engine(answering, records):
    got = answering.generate_until(asked(records, temperature=0, until=["\n\n"]))
    engine = answering.engine
    engine.temperature = 0.0
    requests = [Request({**record, "id": f"own-{n}"}, 0.0, 0) for n, record in enumerate(records)]
    expected = [completion.text for completion in engine.generate(engine.prepare(requests))]
    assert got == expected and all(got)


def test_stops_and_lengths_count_for_each_request(answering, records):
    free = answering.generate_until(asked(records))
    middle = free[0][len(free[0]) // 2]
    mixed = asked(records[:1], until=[middle]) + asked(records, max_new_tokens=1)[1:2] + asked(records)[2:]
    got = answering.generate_until(mixed)
    assert got[0] == free[0].partition(middle)[0] != free[0]
    assert len(got[1]) < len(free[1]) and free[1].startswith(got[1])
    assert got[2:] == free[2:]


def test_sampling_differs_from_one_repeat_to_the_next_and_is_reproducible(records):
    def sampled():
        model = Answering("demo", device="cpu", seed=3)
        model.task_dict = {"demo": {"test": records}}
        return [model.generate_until(asked(records, temperature=2.0, do_sample=True)) for _ in range(3)]

    first = sampled()
    assert first == sampled()
    assert len({tuple(answers) for answers in first}) == 3


def test_a_request_without_a_readable_image_is_said_and_the_others_answered(answering, records, caplog):
    requests = asked(records[:3])
    broken = requests[1].args
    requests[1] = SimpleNamespace(args=(*broken[:2], lambda _: ["no-such-file.png"], 99, *broken[4:]))
    answering.task_dict = {"demo": {"test": [*records, *[None] * 100]}}
    with caplog.at_level(logging.WARNING, "hardsample.evaluation.lmms_eval"):
        got = answering.generate_until(requests)
    assert got[1] == "" and got[0] and got[2]
    assert "document 99" in caplog.text and "no-such-file.png" in caplog.text


def test_settings():
    assert read_settings({"until": ["\n"]}) == (0.0, None)
    assert read_settings({"temperature": 0.7, "max_new_tokens": 8}) == (0.7, 8)
    assert read_settings({"temperature": 0.7, "do_sample": False, "max_gen_toks": "4"}) == (0.0, 4)
    assert read_settings({"do_sample": True}) == (1.0, None)
    assert read_settings({"temperature": 0, "top_p": 0.9, "num_beams": 1}) == (0.0, None)
    with pytest.raises(ValueError, match="num_beams is 4"):
        read_settings({"num_beams": 4})
    with pytest.raises(ValueError, match="top_p or top_k"):
        read_settings({"temperature": 1.0, "top_p": 0.9})


def test_images_go_to_their_places_else_before_the_text():
    kinds = lambda prompt: [block["type"] for block in prompt[0]["content"]]  # noqa: E731
    prompt, images = read_prompt("left <image> right <image>", ["a", "b"])
    assert kinds(prompt) == ["text", "image", "text", "image"] and images == ["a", "b"]
    prompt, images = read_prompt("<image> which?", ["a", "b"])
    assert kinds(prompt) == ["image", "image", "text"] and prompt[0]["content"][2]["text"] == "which?"
    assert kinds(read_prompt("which?", ["a"])[0]) == ["image", "text"] and images == ["a", "b"]
    assert kinds(read_prompt("", ["a"])[0]) == ["image", "text"]


def test_cutting():
    assert cut("one\ntwo", "\n") == "one" and cut("one two", ["x", "o "]) == "one two".partition("o ")[0]
    assert cut("a;b\nc", ["\n", ";"]) == "a" and cut("abc", None) == "abc" and cut("abc", [""]) == "abc"


def test_what_is_not_offered_is_said(answering):
    for call in (answering.loglikelihood, answering.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="choose a task"):
            call([])
