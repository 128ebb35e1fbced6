"""A setting is one dataclass field: its type, default, help text and range. The command line is made from these fields.

>>> @dataclass(frozen=True)
... class Config:
...     batch_size: int = setting(64, "rollouts in one generate call", min=1)
"""

from collections.abc import Collection, Mapping
from dataclasses import Field, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hardsample.errors import ConfigError


def setting(
    default: Any,
    help: str,
    *,
    choices: Collection[str] | None = None,
    min: float | None = None,
    group: str | None = None,
    escapes: bool = False,
    python_only: bool = False,
) -> Any:
    """Declare a setting.

    Args:
        default: its default.
        help: what it does, with unit and range.
        choices: the values that a string may have; `check_settings` checks them.
        min: the smallest value, checked likewise; an integer means that the value is an integer.
        group: heading of this option and of those below it in --help.
        escapes: whether the command line reads the two characters \\n as a new line.
        python_only: whether the command line does not offer it.
    """
    extra = {"choices": choices, "min": min, "group": group, "escapes": escapes, "python_only": python_only}
    return field(
        default=default,
        metadata={"help": help}
        | {name: value for name, value in extra.items() if value is not None and value is not False},
    )


def declared(config: type, name: str) -> Any:
    """Return a field with the default and the help text of another config's setting, so that both are written once.

    Choices and ranges stay with the config that declares them: TRL's parser takes no metadata that it does not know.
    """
    source = field_of(config, name)
    return field(default=source.default, metadata={"help": source.metadata["help"]})


def field_of(config: type, name: str) -> Field[Any]:
    """Return the field of that name."""
    return next(known for known in fields(config) if known.name == name)


def check_settings(config: Any) -> None:
    """Check the choices and the smallest values that the fields declare.

    Raises:
        ConfigError: names the first setting that is out of range.
    """
    for known in fields(config):
        name, value = known.name, getattr(config, known.name)
        choices, least = known.metadata.get("choices"), known.metadata.get("min")
        if value is None and known.default is None:
            continue
        if choices is not None and value not in choices:
            raise ConfigError(f"{name} is {value!r}, must be one of {', '.join(choices)}: choose one")
        if least is None:
            continue
        advice = "choose one, or leave it out" if known.default is None else f"choose one, such as {known.default}"
        if isinstance(least, int) and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ConfigError(f"{name} is {value!r}, must be an integer of at least {least}: {advice}")
        if not least <= value < float("inf"):
            raise ConfigError(f"{name} is {value!r}, must be a number of at least {least:g}: {advice}")


def read_settings(path: str | Path, known: Collection[str]) -> dict[str, Any]:
    """Read settings from a YAML file of `name: value` lines; a dash in a name counts as an underscore.

    Args:
        path: the file.
        known: the names that it may hold.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds a name that is not known.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings: write lines of name: value")
    return named_settings(content, known, str(path))


def named_settings(content: Mapping[Any, Any], known: Collection[str], where: str) -> dict[str, Any]:
    """Return settings under the names of their fields.

    Args:
        content: name → value; a dash in a name counts as an underscore.
        known: the names that there are.
        where: they stand, for messages.

    Raises:
        ConfigError: a name is not known, or stands twice; names it, where it stands, and the nearest known name.
    """
    named: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: there is no setting {str(key)!r}: {hint}")
        if name in named:
            raise ConfigError(f"{where}: {name} stands twice, with dashes and with underscores: keep one")
        named[name] = value
    return named
