"""From config dataclasses to options: names, types, defaults, choices; and files of settings."""

from dataclasses import dataclass, field, fields

import pytest
import typer
from typer.testing import CliRunner

from hardsample.cli.options import Command, build, parse_items, settings_of, with_settings
from hardsample.errors import ConfigError
from hardsample.metrics.strata import Bounds
from hardsample.scoring.config import ScoringConfig
from hardsample.settings import check_settings, declared, setting


@dataclass(frozen=True)
class Inner:
    depth: int = setting(2, "how deep", min=1)
    secret: str = setting("s", "not offered", python_only=True)


@dataclass(frozen=True)
class Config:
    mode: str = setting("fast", "how", choices=("fast", "very_slow"), group="Ways")
    weights: tuple[float, ...] = setting((0.0, 0.5), "shares")
    names: list[str] = field(default_factory=lambda: ["a"], metadata={"help": "of parts"})
    loud: bool = setting(False, "whether to shout")
    note: str = setting("a\nb", "text", escapes=True)
    inner: Inner = field(default=Inner(), metadata={"help": "nested"})
    table: dict[str, int] = field(default_factory=dict, metadata={"help": "in a file only"})

    def __post_init__(self) -> None:
        check_settings(self)


app, made = typer.Typer(pretty_exceptions_enable=False, add_completion=False), []


@app.command(cls=Command)
@with_settings(Config)
def command(size: int = 1, *, config: Config) -> None:
    made.append((size, config))


def run(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return made.pop() if made else done.output


def test_without_options_the_defaults_are_the_fields():
    assert run() == (1, Config())


def test_every_kind_of_option():
    size, config = run(
        *"--size 3 --mode very_slow --weights 0:1:0.25 --names x --names y --loud --inner_depth 4".split(),
        r"--note=one\ntwo",
    )
    assert size == 3
    assert config == Config("very_slow", (0.0, 0.25, 0.5, 0.75, 1.0), ["x", "y"], True, "one\ntwo", Inner(depth=4))


def test_the_help_has_choices_defaults_and_groups(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = run("--help")
    for part in ("<fast|very_slow>", "default: fast", "default: 0,0.5", "--inner-depth", "x>=1", "Ways", "shares"):
        assert part in text, part
    assert "secret" not in text and "table" not in text


def test_a_file_gives_defaults_that_the_command_line_overrides(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("size: 5\nmode: very_slow\nweights: [0, 1]\nnames: z\nloud: true\ninner-depth: 3\ntable: {a: 1}\n")
    assert run("--config", path) == (5, Config("very_slow", (0.0, 1.0), ["z"], True, inner=Inner(3), table={"a": 1}))
    size, config = run("--config", path, "--no-loud", "--inner-depth", "7", "--names", "q")
    assert (size, config.loud, config.inner.depth, config.names) == (5, False, 7, ["q"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inner_deep: 1", r"c\.yaml: there is no setting 'inner_deep': did you mean inner_depth\?"),
        ("xyzzy: 1", r"there is no setting 'xyzzy': choose from inner_depth, loud"),
        ("secret: 1", "there is no setting 'secret'"),
        ("inner-depth: 1\ninner_depth: 2", "inner_depth stands twice"),
        ("inner_depth: 0", "inner_depth is 0: .*greater than or equal to 1"),
        ("inner_depth: deep", "inner_depth is 'deep'"),
        ("mode: slow", "mode is 'slow': 'slow' is not one of 'fast', 'very_slow'"),
        ("weights: [a]", "'a' is no list of numbers"),
        ("- a", "holds no settings"),
        ("a: b: c", "is not valid YAML"),
    ],
)
def test_mistakes_in_a_file_name_the_key_and_the_file(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text + "\n")
    with pytest.raises(ConfigError, match=message):
        run("--config", path)


def test_a_list_of_numbers():
    assert parse_items("0:0.9:0.1", float) == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert parse_items("0,.25,1/2", float) == (0.0, 0.25, 0.5)
    assert parse_items("2, 3", int) == (2, 3)
    for text in ("", "a", "0:1", "0:1:0"):
        with pytest.raises(ConfigError, match="no list of numbers"):
            parse_items(text, float)


def test_every_setting_of_a_scoring_is_an_option_and_makes_the_same_config():
    offered = {option.name: option for option in settings_of(ScoringConfig)}
    for known in fields(ScoringConfig):
        assert known.name in offered or known.name == "cmab", known.name
        assert known.metadata["help"], known.name
    parameters = {name: option.parameter().default for name, option in offered.items()}
    assert build(ScoringConfig, parameters) == ScoringConfig()


def test_a_declaration_is_taken_over_with_default_and_help():
    assert declared(Bounds, "hard_max").default == ScoringConfig.hard_max == 0.4
    for name in ("hard_max", "easy_min"):
        helps = {config.__dataclass_fields__[name].metadata["help"] for config in (Bounds, ScoringConfig)}
        assert len(helps) == 1
