"""The private methods and attributes of TRL's and transformers' trainers that ours lean on, each as it must be.

`PRIVATE` is the whole list, and a test proves it: whoever overrides, calls or reads another one adds it here.
"""

import ast
import importlib
import inspect
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import transformers
import trl
from transformers import Trainer
from trl import GRPOTrainer

import hardsample.trainer as ours

ROOM = Path(ours.__file__).parent


@dataclass(frozen=True)
class Method:
    """A method of theirs."""

    signature: str
    """Parameters and defaults without annotations; `...` at the end stands for more of them."""
    leans: str
    """What of ours leans on it, and how."""
    overridden: bool = True
    """Whether it is overridden, so that they must call it."""
    returns: str | None = None
    """What its last `return` says, up to `...`, where ours takes the result apart."""


@dataclass(frozen=True)
class Attribute:
    """An attribute that their instances have."""

    leans: str
    """What of ours leans on it, and how."""


PRIVATE = {
    # --- methods that are overridden
    "_prepare_inputs": Method(
        "(self, generation_batch)", "DifficultyAwareGRPOTrainer knows by it that a generation begins and ends"
    ),
    "_prepare_context_parallel_inputs": Method(
        "(self, model, inputs)", "RowBatches turns row numbers into samples in it, the last call before _prepare_inputs"
    ),
    "_get_train_sampler": Method("(self, dataset=None)", "RowBatches gives the places of a generation instead of rows"),
    "_generate_and_score_completions": Method(
        "(self, inputs)", "DifficultyAwareGRPOTrainer adds the rows of right completions to its result"
    ),
    "_calculate_rewards": Method(
        "(self, inputs, prompts, completions, completion_ids_list)",
        "DifficultyAwareGRPOTrainer reads the gathered rewards from it, and Probing calls it for probes",
    ),
    "_tokenize_prompts": Method(
        "(self, prompts)",
        "DifficultyAwareGRPOTrainer masks the preprocessed images of probes in its result",
        returns="prompt_ids, images, multimodal_fields",
    ),
    "_compute_loss": Method(
        "(self, model, inputs)", "DifficultyAwareGRPOTrainer announces in it which forward has the attention balances"
    ),
    "_get_per_token_logps_and_entropies": Method(
        "(self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, ...)",
        "DifficultyAwareGRPOTrainer collects attention masses in it, and Balances.collect reads its arguments by name",
    ),
    "_save_checkpoint": Method("(self, model, trial)", "DifficultyAwareGRPOTrainer saves the folder difficulty/ in it"),
    "_load_from_checkpoint": Method(
        "(self, resume_from_checkpoint, model=None)", "DifficultyAwareGRPOTrainer loads renamed weights in it"
    ),
    "_load_best_model": Method("(self)", "DifficultyAwareGRPOTrainer loads renamed weights in it"),
    "_load_optimizer_and_scheduler": Method(
        "(self, checkpoint)", "DifficultyAwareGRPOTrainer loads the folder difficulty/ after it"
    ),
    "_generate": Method(
        "(self, prompts)",
        "DifficultyAwareGRPOTrainer counts its tokens and hands TRL the completions that were kept; Probing and "
        "Resampling generate by it",
        returns="prompt_ids, completion_ids, tool_mask, completions, ...",
    ),
    # --- methods that are called or looked up
    "_get_dataloader": Method(
        "(self, dataset, description, batch_size, sampler_fn=None, ...)",
        "RowBatches looks whether a subclass overrides it",
        overridden=False,
    ),
    "_get_output_dir": Method(
        "(self, trial)", "DifficultyAwareGRPOTrainer._save_checkpoint finds the checkpoint's folder", overridden=False
    ),
    "_remove_unused_columns": Method(
        "(self, dataset, description=None)", "set_up makes the rows as reward functions see them", overridden=False
    ),
    # --- attributes
    "_step": Attribute("RowBatches tells by it when a generation is due, and resuming saves and sets it"),
    "_buffered_inputs": Attribute("RowBatches tells by it when a generation is due, and resuming saves and sets it"),
    "_metrics": Attribute(
        "DifficultyAwareGRPOTrainer logs by it, resuming saves it, and `quiet` puts another in place"
    ),
    "_pending_extra_logs": Attribute("`quiet` of Probing puts another in place for probes"),
    "_pending_metrics": Attribute("`quiet` of Probing puts another in place for probes"),
}


@cache
def source_of(theirs):
    """Return the syntax trees of the classes of a trainer, their own and those they inherit from."""
    return [ast.parse(textwrap.dedent(inspect.getsource(base))) for base in theirs.__mro__ if base is not object]


def nodes_of(theirs):
    return [node for tree in source_of(theirs) for node in ast.walk(tree)]


def is_self(node):
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def set_attributes(theirs):
    """Return the names of the attributes that the methods of a trainer set on it."""
    return {node.attr for node in nodes_of(theirs) if is_self(node) and isinstance(node.ctx, ast.Store)}


def called_methods(theirs):
    """Return the names of the methods that a trainer calls on itself, or hands on."""
    return {node.attr for node in nodes_of(theirs) if is_self(node) and isinstance(node.ctx, ast.Load)}


def fits(actual, recorded):
    """Return whether text is what was recorded, which may leave out its end by `...`."""
    start, left_out, _ = recorded.partition(", ...")
    return actual.startswith(start) if left_out else actual == recorded


def signature_of(function):
    parameters = inspect.signature(function).parameters.values()
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(bare))


def returned_by(function):
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    values = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value is not None]
    last = max(values, key=lambda value: value.lineno)
    return ", ".join(map(ast.unparse, last.elts)) if isinstance(last, ast.Tuple) else ast.unparse(last)


def what_changed(theirs, name, recorded):
    """Return in one sentence how a trainer differs from what is recorded; None if it does not."""
    where = f"in TRL {trl.__version__} with transformers {transformers.__version__}"
    if isinstance(recorded, Attribute):
        if name in set_attributes(theirs):
            return None
        return f"{theirs.__name__} no longer sets {name} {where}, but {recorded.leans}."
    function = getattr(theirs, name, None)
    if function is None:
        return f"{theirs.__name__} no longer has {name} {where}, but {recorded.leans}."
    if not fits(signature_of(function), recorded.signature):
        changed = f"is {signature_of(function)} and no longer {recorded.signature}"
    elif recorded.returns is not None and not fits(returned_by(function), recorded.returns):
        changed = f"returns {returned_by(function)} and no longer {recorded.returns}"
    elif recorded.overridden and name not in called_methods(theirs):
        changed = "is no longer called"
    else:
        return None
    return f"{theirs.__name__}.{name} {changed} {where}, but {recorded.leans}."


@pytest.mark.parametrize("name", PRIVATE)
def test_what_ours_lean_on_is_as_recorded(name):
    changed = what_changed(GRPOTrainer, name, PRIVATE[name])
    assert changed is None, changed


class Later(GRPOTrainer):
    """A trainer of a later version."""

    _load_best_model = None

    def _save_checkpoint(self, model):
        pass

    def _tokenize_prompts(self, prompts):
        return prompts, None


def test_a_change_is_said_in_one_sentence():
    where = f"in TRL {trl.__version__} with transformers {transformers.__version__}"
    assert what_changed(Later, "_load_best_model", PRIVATE["_load_best_model"]) == (
        f"Later no longer has _load_best_model {where}, but DifficultyAwareGRPOTrainer loads renamed weights in it."
    )
    assert what_changed(Later, "_save_checkpoint", PRIVATE["_save_checkpoint"]) == (
        f"Later._save_checkpoint is (self, model) and no longer (self, model, trial) {where}, but "
        "DifficultyAwareGRPOTrainer saves the folder difficulty/ in it."
    )
    assert "returns prompts, None and no longer prompt_ids, images," in what_changed(
        Later, "_tokenize_prompts", PRIVATE["_tokenize_prompts"]
    )
    assert "Later no longer sets _gone" in what_changed(Later, "_gone", Attribute("nothing leans on it"))
    assert "Later._tokenize is no longer called" in what_changed(
        type("Later", (Later,), {"_tokenize": lambda self: None}), "_tokenize", Method("(self)", "nothing leans on it")
    )


class Uses(ast.NodeVisitor):
    """Collects the private names that a module of ours takes from a trainer, or gives to a subclass of one."""

    def __init__(self, module):
        self.module, self.names, self.in_trainer = module, set(), False

    def visit_ClassDef(self, node):
        known = getattr(self.module, node.name, None)
        outside, self.in_trainer = self.in_trainer, isinstance(known, type) and issubclass(known, Trainer)
        if self.in_trainer:
            self.names |= {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
        self.generic_visit(node)
        self.in_trainer = outside

    def visit_Attribute(self, node):
        of = ast.unparse(node.value)
        if of.endswith(("trainer", "Trainer")) or (self.in_trainer and of in ("self", "super()")):
            self.names.add(node.attr)
        self.generic_visit(node)

    def visit_Constant(self, node):  # for getattr and setattr
        if isinstance(node.value, str):
            self.names.add(node.value)


def private_names_used(text, module):
    uses = Uses(module)
    uses.visit(ast.parse(text))
    return {name for name in uses.names if name.startswith("_") and not name.startswith("__")}


def test_nothing_private_of_theirs_is_used_that_is_not_recorded():
    theirs = set(dir(GRPOTrainer)) | set_attributes(GRPOTrainer)
    used = {}
    for path in sorted(ROOM.rglob("*.py")):
        parts = path.relative_to(ROOM).with_suffix("").parts
        module = importlib.import_module(".".join(("hardsample.trainer", *parts)).removesuffix(".__init__"))
        for name in private_names_used(path.read_text(), module) & theirs:
            used.setdefault(name, path.relative_to(ROOM).as_posix())
    missing = {name: where for name, where in used.items() if name not in PRIVATE}
    assert not missing, f"private names of TRL's trainer that PRIVATE lacks, and where they are used: {missing}"
    assert not set(PRIVATE) - set(used), f"in PRIVATE, but no longer used: {sorted(set(PRIVATE) - set(used))}"


def test_every_way_of_using_a_private_name_is_seen():
    text = """
class Ours:
    def _a(self):
        super()._b()
        return self._c, self.trainer._d, [getattr(self, name) for name in ("_e", "f")]

class Other:
    def _g(self):
        return self._h

def function(trainer):
    trainer._i = trainer.state._j
"""
    module = type("module", (), {"Ours": Later, "Other": int})
    assert private_names_used(text, module) == {"_a", "_b", "_c", "_d", "_e", "_i"}
