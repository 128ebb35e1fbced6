"""A setting is one dataclass field: its type, default, help text and range. The command line is made from these fields.

>>> @dataclass(frozen=True)
... class Config:
...     batch_size: int = setting(64, "rollouts in one generate call", min=1)
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import Field, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from math import isnan
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

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


_Config = TypeVar("_Config")


def make_config(kind: type[_Config], config: _Config | None, settings: Mapping[str, Any]) -> _Config:
    """Return the config of a function that takes one, or its settings one by one.

    Args:
        kind: the config's dataclass; settings of a nested config have the name of its field in front, as on the
            command line (`cmab_variant`).
        config: the config, if it was given.
        settings: by name, if they were given.

    Raises:
        ConfigError: both were given, a setting is unknown, or a value is out of range.
    """
    if config is not None:
        if settings:
            raise ConfigError(
                f"{next(iter(settings))} is given beside config: put it into the config, or give no config"
            )
        if not isinstance(config, kind):
            raise ConfigError(f"config is a {type(config).__name__}, must be a {kind.__name__}: make one")
        return config
    hints = _hints(kind)  # type: ignore[arg-type]
    nested = {f"{name}_": hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    prefixed = {
        prefix + known.name: (prefix, known.name) for prefix, inner in nested.items() for known in fields(inner)
    }
    values = named_settings(settings, hints.keys() | prefixed.keys(), kind.__name__)
    for prefix, inner in nested.items():
        own = {prefixed[name][1]: values.pop(name) for name in list(values) if prefixed.get(name, ("",))[0] == prefix}
        if own:
            values[prefix[:-1]] = inner(**own)
    return kind(**values)


@cache
def _hints(config: Any) -> dict[str, Any]:
    """Return the types of a config's fields."""
    return get_type_hints(config)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has a field's type; an integer is a number, too, and a list will do for a tuple."""
    if args := get_args(hint):
        if NoneType in args or get_origin(hint) not in (tuple, list, dict):
            return any(_fits(value, part) for part in args)
        if get_origin(hint) is tuple:
            sequence = isinstance(value, Sequence) and not isinstance(value, str)
            return sequence and all(_fits(item, args[0]) for item in value)
        return isinstance(value, get_origin(hint))
    if hint in (float, int) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, Real) and not isnan(value)
    if hint is int:
        return isinstance(value, Integral)
    return not isinstance(hint, type) or isinstance(value, hint)


def _type_name(hint: Any) -> str:
    """Say what a value may be."""
    names = {float: "a number", int: "an integer", str: "a text", bool: "true or false", NoneType: "None"}
    if get_origin(hint) is tuple:
        return "a sequence of " + {float: "numbers", int: "integers", str: "texts"}.get(get_args(hint)[0], "values")
    if get_args(hint) and get_origin(hint) not in (list, dict):
        return " or ".join(_type_name(part) for part in get_args(hint))
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def check_types(config: Any, part: type | None = None) -> None:
    """Check that each field holds a value of its type.

    Args:
        config: the config.
        part: the dataclass whose fields are checked, one that the config inherits from; None: its own.

    Raises:
        ConfigError: names the first that does not.
    """
    kind = part or type(config)
    for known in fields(kind):
        value, hint = getattr(config, known.name), _hints(kind)[known.name]
        if not _fits(value, hint):
            advice = "leave it out" if known.default is None else f"choose one, such as {known.default!r}"
            raise ConfigError(f"{known.name} is {value!r}, must be {_type_name(hint)}: {advice}")


def check_settings(config: Any) -> None:
    """Check the types, the choices and the smallest values that the fields declare.

    Raises:
        ConfigError: names the first setting that is out of range.
    """
    check_types(config)
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
