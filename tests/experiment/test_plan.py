"""What is trained is what the recipes say; what two cells have in common is trained once."""

import pytest

from hardsample.errors import ConfigError, HardsampleError
from hardsample.trainer.experiment.config import ExperimentConfig, Variant, read_experiment
from hardsample.trainer.experiment.plan import BASE, Strata, make_plan, strata_of

LABELS = ["medium"] * 6 + ["hard"] * 10 + ["unsolved"] * 8 + ["easy"] * 8
IDS = tuple(f"s{number}" for number in range(len(LABELS)))
PISM = Strata("pism", IDS, tuple(LABELS))
CMAB = Strata("cmab", IDS, tuple(reversed(LABELS)))
PROMPTS = {"grpo": 2, "sft": 4}


def config(**options):
    return ExperimentConfig(data="d", test="t", model="m", output="o", **options)


def planned(strata=(PISM,), **options):
    return make_plan(config(**options), strata, PROMPTS, 8)


def test_one_epoch_and_equal_rollouts():
    plan = planned(recipes=["full", "medium+hard"], seeds=[0], budgets=["epoch", "rollouts"], steps=12)
    steps = {(cell.recipe, cell.budget): plan.trainings[cell.trainings[0]].steps for cell in plan.cells}
    assert steps == {
        ("full", "epoch"): 12,  # 16, but at most `steps`
        ("medium+hard", "epoch"): 8,
        ("full", "rollouts"): 12,
        ("medium+hard", "rollouts"): 12,
    }
    assert all(training.rollouts == training.steps * 2 * 8 for training in plan.trainings.values())
    assert all(training.options["max_steps"] == training.steps for training in plan.trainings.values())


def test_what_is_shared_is_trained_once():
    recipes = ["full", "medium-hard", "medium-rand_h", "rand_m-hard"]
    plan = planned((PISM, CMAB), recipes=recipes, seeds=[0, 1])
    assert len(plan.cells) == 2 * (1 + 2 * 3)  # the full set uses no metric
    both = [cell for cell in plan.cells if cell.metric == "pism" and cell.seed == 0]
    firsts = {cell.recipe: cell.trainings[0] for cell in both}
    assert firsts["medium-hard"] == firsts["medium-rand_h"] != firsts["rand_m-hard"]
    assert len({key for cell in plan.cells for key in cell.trainings}) == len(plan.trainings)
    # a random draw of the size of medium is the same for both metrics, whose medium is of one size here
    assert len(plan.trainings) == 2 * (1 + 2 * (2 + 3) - 1)
    for key, training in plan.trainings.items():
        assert training.parent == BASE or list(plan.trainings).index(training.parent) < list(plan.trainings).index(key)


def test_seeds_come_whole():
    seeds = [cell.seed for cell in planned(recipes=["full", "random"], seeds=[3, 1]).cells]
    assert seeds == [3, 3, 1, 1]


def test_variants_differ_in_their_options():
    variants = {"sparse": {}, "dense": {"reward_funcs": ["other"], "grpo": {"beta": 0.1}}}
    plan = planned(recipes=["full", "medium-hard"], seeds=[0], variants=variants)
    by = {(cell.recipe, cell.variant): [plan.trainings[key] for key in cell.trainings] for cell in plan.cells}
    assert by["full", "dense"][0].reward_funcs == ("other",) and by["full", "dense"][0].options["beta"] == 0.1
    assert by["full", "sparse"][0].reward_funcs == ("correctness",)
    assert by["medium-hard", "sparse"][0].key == by["medium-hard", "dense"][0].key  # fine-tuning has no reward
    assert by["medium-hard", "sparse"][1].key != by["medium-hard", "dense"][1].key


def test_other_options_are_other_trainings():
    def keys(**options):
        return set(planned(recipes=["medium-hard", "random"], seeds=[0], **options).trainings)

    assert keys() == keys()
    assert not keys() & keys(freeze=["x"])
    assert len(keys() & keys(grpo={"beta": 0.5})) == 1  # the fine-tuning stays
    assert len(keys() & keys(sft={"learning_rate": 1e-3})) == 1  # the random GRPO stays


def test_a_part_without_samples_is_a_problem_of_its_cell():
    plan = make_plan(
        config(recipes=["unsolved", "full"], seeds=[0]),
        [Strata("pism", IDS[:6], ("medium",) * 6)],
        PROMPTS,
        8,
    )
    problems = {cell.recipe: cell.problem for cell in plan.cells}
    assert problems["full"] == "" and "unsolved has 0 samples, a step of grpo takes 2" in problems["unsolved"]


def test_thirds_where_a_stratum_is_small():
    labels = ["hard"] * 9 + ["unsolved"]
    thresholds = [0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.3, 0.3, 0.3, 0.0]
    fallback = strata_of("pism", IDS[:10], labels, thresholds, [None] * 10, [0.0, 0.1, 0.2, 0.3], 3)
    assert fallback.strata == ("hard",) * 3 + ("medium",) * 3 + ("easy",) * 3 + ("unsolved",)
    assert "only 0 medium of 10" in fallback.note
    assert strata_of("pism", IDS, LABELS, [], [], [], 6) == PISM


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["luck"]}, "metrics names 'luck'"),
        ({"seeds": []}, "at least one"),
        ({"seeds": [1, 1]}, "without repeats"),
        ({"seeds": [-1]}, "integers from 0"),
        ({"steps": 0}, "steps is 0"),
        ({"recipes": ["dpo all"]}, "there is no recipe"),
        ({"grpo": {"max_steps": 3}}, "max_steps, which the experiment sets itself"),
        ({"primary": {"recipe": "full"}}, "the primary comparison names 'full'"),
        ({"variants": {"a": {"rewards": []}}}, "variants.a: there is no setting 'rewards'"),
    ],
)
def test_what_is_no_experiment(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_the_file(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text("data: d\ntest: t\nmodel: m\noutput: o\nrecipes: paper\nvariants: {a: {grpo: {beta: 0.1}}}\n")
    config = read_experiment(path, output="other")
    assert len(config.recipes) == 12 and config.output == "other"
    assert config.variants == {"a": Variant(grpo={"beta": 0.1})}
    for text, message in (
        ("data: [", "is not valid YAML"),
        ("- a", "holds no settings"),
        ("data: d\nseed: 3", "no setting 'seed': did you mean seeds"),
        ("data: d", "must be given"),
    ):
        path.write_text(text)
        with pytest.raises(HardsampleError, match=message):
            read_experiment(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_experiment(tmp_path / "none.yaml")
