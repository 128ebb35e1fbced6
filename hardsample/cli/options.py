"""From config dataclasses to the options of a command, and `--config FILE.yaml` with the same names.

The field of a dataclass is the only declaration of a setting (`hardsample.settings.setting`): a command that is made
`with_settings(ScoringConfig)` has one option for each field, so a new option is one new field. typer makes the help
page and the parser. tyro and jsonargparse make a command line from dataclasses too, but take half a second to import
or bring a help page and a config syntax of their own; what we need of them is this module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from fractions import Fraction
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from hardsample.cli.console import Help, reading_options
from hardsample.errors import ConfigError
from hardsample.settings import read_settings

FILE_ONLY = "hardsample.file_only"
"""Where a context keeps the settings of a file that no option stands for."""


class Command(Help, TyperCommand):
    """A command whose options may be written with dashes or underscores."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments, `--batch_size 8` as `--batch-size 8`."""
        return super().parse_args(ctx, [dashed(text) for text in args])


def dashed(text: str) -> str:
    """Write the name of an option with dashes; other arguments stay as they are."""
    name, equals, value = text.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if text.startswith("--") else text


@dataclass(frozen=True)
class Setting:
    """A field of a config, as an option."""

    name: str
    """With underscores, after the prefix of the nested config that it is in."""
    field: Field[Any]
    kind: Any
    """Its type, without None."""
    group: str | None

    @property
    def default(self) -> Any:
        """Its default, `MISSING` if it must be given."""
        if self.field.default_factory is not MISSING:
            return self.field.default_factory()
        return self.field.default

    @property
    def is_tuple(self) -> bool:
        """Whether the option takes values with commas between them."""
        return get_origin(self.kind) is tuple

    @property
    def file_only(self) -> bool:
        """Whether only a file can hold it: a mapping."""
        return (get_origin(self.kind) or self.kind) is dict or is_dataclass(self.kind)

    def parameter(self) -> inspect.Parameter:
        """Return the parameter that typer makes an option of."""
        metadata, default, more = self.field.metadata, self.default, dict[str, Any]()
        kind: Any = str if self.is_tuple else self.kind
        if self.is_tuple and default is not None:
            default = ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in default)
        if "choices" in metadata:
            kind = Literal[tuple(metadata["choices"])]
        if metadata.get("min") is not None:
            more["min"] = metadata["min"]
        if metadata.get("escapes"):
            more["show_default"] = default = default.replace("\n", "\\n")
        if kind is bool:  # a file may say yes where the command line then says no
            more["show_default"] = False if not default else None
        repeated = "; repeat the option for more" if get_origin(kind) is list else ""
        option = typer.Option(help=metadata["help"] + repeated, rich_help_panel=self.group, **more)
        missing = default is MISSING
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if missing else default,
            annotation=Annotated[kind if missing or default is not None else kind | None, option],
        )

    def read(self, value: Any) -> Any:
        """Return the field's value from the option's."""
        if self.is_tuple and isinstance(value, str):
            return parse_items(value, get_args(self.kind)[0])
        if self.field.metadata.get("escapes"):
            return value.replace("\\n", "\n")
        return str(value) if isinstance(value, Path) else value


def settings_of(config: type, prefix: str = "", group: str | None = None) -> Iterator[Setting]:
    """Give the settings of a config that the command line offers, its own before those that it inherits.

    The settings of a nested config have the name of its field in front.

    Args:
        config: a dataclass.
        prefix: in front of each name.
        group: heading of the first ones, if they have none.
    """
    hints, bases = get_type_hints(config), [base for base in config.__mro__ if is_dataclass(base)]
    origin = {
        known.name: max(bases.index(base) for base in bases if known.name in vars(base).get("__annotations__", {}))
        for known in fields(config)
    }
    for known in sorted(fields(config), key=lambda known: origin[known.name]):
        metadata, kind = known.metadata, hints[known.name]
        group = metadata.get("group", group)
        if metadata.get("python_only"):
            continue
        if is_dataclass(kind) and isinstance(kind, type):
            yield from settings_of(kind, f"{prefix}{known.name}_", group)
            continue
        if NoneType in get_args(kind):
            kind = next(part for part in reversed(get_args(kind)) if part is not NoneType)
        yield Setting(prefix + known.name, known, kind, group)


def build(config: type, values: dict[str, Any], prefix: str = "") -> Any:
    """Make a config of the values of its options.

    Args:
        config: the dataclass.
        values: by the names of `settings_of`; a field whose name is missing has its default.
        prefix: in front of each name.

    Raises:
        ConfigError: a value is out of range.
    """
    hints, made = get_type_hints(config), dict[str, Any]()
    for known in fields(config):
        if known.metadata.get("python_only"):
            continue
        if is_dataclass(hints[known.name]):
            made[known.name] = build(hints[known.name], values, f"{prefix}{known.name}_")
    for option in settings_of(config, prefix):
        if option.name in values and option.name.removeprefix(prefix) in hints:
            made[option.field.name] = option.read(values[option.name])
    return config(**made)


def with_settings(config: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each setting of a config, and `--config FILE`.

    The command's own parameters stay; in place of its parameter `config` it gets the options, and is called with the
    config that they make. A file may hold all of them, the command's own too.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in signature.parameters.values()
            if parameter.name != "config"
        ]
        settings = list(settings_of(config))
        options = [option for option in settings if not option.file_only]
        file_only = {option.name for option in settings if option.file_only}

        @wraps(command)
        def run(context: typer.Context, config_file: Path | None, **values: Any) -> None:
            del config_file  # read by its callback, before the other options
            mine = {parameter.name: values.pop(parameter.name) for parameter in own}
            with reading_options():
                made = build(config, values | context.meta.get(FILE_ONLY, {}))
            command(**mine, config=made)

        def read_file(context: typer.Context, path: Path | None) -> Path | None:
            if path is not None:
                take_file(context, path, file_only)
            return path

        help_text = "YAML file of settings, named as these options; what the command line says overrides it."
        file = typer.Option("--config", metavar="FILE", help=help_text, is_eager=True, callback=read_file)
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
                *own,
                inspect.Parameter(
                    "config_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, file]
                ),
                *(option.parameter() for option in options),
            ]
        )
        run.__annotations__ = {name: p.annotation for name, p in run.__signature__.parameters.items()}  # type: ignore[attr-defined]
        return run

    return decorate


def take_file(context: typer.Context, path: Path, file_only: set[str]) -> None:
    """Take the settings of a file as the defaults of a command's options.

    Raises:
        ConfigError: the file cannot be read, holds a name that is no setting, or a value that does not fit.
    """
    parameters = {known.name: known for known in context.command.params if known.name not in ("config_file", "help")}
    content = read_settings(path, parameters.keys() | file_only)
    context.meta[FILE_ONLY] = {name: value for name, value in content.items() if name in file_only}
    defaults: dict[str, Any] = {}
    for name, value in content.items():
        if name in file_only or value is None:
            continue
        parameter: Any = parameters[name]
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, bool) for item in items) and not parameter.is_flag:
            raise ConfigError(f"{path}: {name} is {value!r}, must not be true or false: write a number or a text")
        if isinstance(value, list) and not parameter.multiple:
            value = ",".join(map(str, value))
        elif parameter.multiple and not isinstance(value, list):
            value = [value]
        try:
            parameter.process_value(context, value)
        except typer.BadParameter as error:
            reason = error.message.removeprefix("Value error, ").removesuffix(".")
            raise ConfigError(f"{path}: {name} is {value!r}: {reason}") from error
        defaults[name] = value
    context.default_map = defaults


MOST_ITEMS = 65_536
"""Of a list `first:last:step`: mask ratios differ by 1/65536 at least."""


def parse_items(text: str, kind: type) -> tuple[Any, ...]:
    """Read `a,b,c`; of numbers also `first:last:step`, such as `0:0.9:0.1`, exactly.

    Raises:
        ConfigError: it is neither.
    """
    if kind is str:
        return tuple(part.strip() for part in text.split(","))
    try:
        if ":" in text:
            first, last, step = map(Fraction, text.split(":"))
            if step <= 0 or (last - first) / step > MOST_ITEMS:
                raise ConfigError(f"{text!r} has no step above 0 that makes at most {MOST_ITEMS:,} numbers: raise it")
            return tuple(kind(first + index * step) for index in range((last - first) // step + 1))
        return tuple(kind(Fraction(part)) for part in text.split(","))
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"{text!r} is no list of numbers: write 0,0.2,0.4 or first:last:step, such as 0:0.9:0.1"
        ) from error
