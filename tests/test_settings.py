"""Settings given in Python: their types, unknown names, and both a config and settings."""

import math
from pathlib import Path

import pytest

import hardsample
from hardsample.errors import ConfigError
from hardsample.evaluation.config import EvaluationConfig
from hardsample.metrics.options import CmabConfig
from hardsample.scoring.config import ScoringConfig
from hardsample.settings import make_config

WRONG = [
    ({"ratios": "0:0.9:0.1"}, "ratios is '0:0.9:0.1', must be a sequence of numbers"),
    ({"ratios": 0.5}, "ratios is 0.5"),
    ({"ratios": (0, math.nan)}, "ratios is"),
    ({"tau": "x"}, "tau is 'x', must be a number"),
    ({"tau": math.nan}, "tau is nan"),
    ({"temperature": "x"}, "temperature is 'x'"),
    ({"hard_max": "x"}, "hard_max is 'x'"),
    ({"request_timeout": "x"}, "request_timeout is 'x'"),
    ({"engine": ["openai"]}, "engine is"),
    ({"limit": "x"}, "limit is 'x', must be an integer"),
    ({"num_masks": 2.5}, "num_masks is 2.5, must be an integer"),
    ({"batch_size": True}, "batch_size is True"),
    ({"cmab": {"variant": "paper"}}, "cmab is"),
    ({"cmab_variant": "other"}, "variant is 'other'"),
    ({"temperatur": 1}, "no setting 'temperatur': did you mean temperature"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG, ids=[next(iter(settings)) for settings, _ in WRONG])
def test_a_wrong_setting_is_named_before_anything_is_done(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        hardsample.score("demo", "demo", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_numbers_and_sequences_of_any_kind_will_do():
    config = make_config(ScoringConfig, None, {"ratios": [0, 0.5], "temperature": 1, "image_root": None})
    assert config.ratios == (0, 0.5) and config.temperature == 1
    assert make_config(EvaluationConfig, None, {"strata": Path("runs")}).strata == Path("runs")


def test_settings_of_a_nested_config_have_its_name_in_front():
    assert make_config(ScoringConfig, None, {"cmab_variant": "released"}).cmab == CmabConfig(variant="released")


def test_a_config_and_settings_are_not_given_together():
    config = ScoringConfig(tau=0.2)
    assert make_config(ScoringConfig, config, {}) is config
    with pytest.raises(ConfigError, match="tau is given beside config"):
        make_config(ScoringConfig, config, {"tau": 0.5})
    with pytest.raises(ConfigError, match="config is a ScoringConfig, must be a EvaluationConfig"):
        make_config(EvaluationConfig, config, {})
