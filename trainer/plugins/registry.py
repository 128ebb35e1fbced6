"""Policies by their names and import paths; policies.py enters the built-in ones."""

import inspect
from typing import Any

from hardsample.errors import ConfigError
from hardsample.imports import import_path

BUILT_IN = ("uniform", "strata", "signal", "target", "curriculum")
POLICIES: dict[str, Any] = {}
"""Every policy by its name: a function of view and context, or a function of a `PolicyInfo` that makes one."""


def register_policy(name: str, policy: Any) -> None:
    """Give a policy a name, for the option `policy`.

    Args:
        name: without dots and colons, which mark import paths; replaces a policy that was registered under it.
        policy: a function of `View` and `Context` that returns `Weights`; or a subclass of `StatefulPolicy`, or
            another callable that makes one from a `PolicyInfo`.

    Raises:
        ConfigError: the name cannot be used, or the policy is neither.
    """
    if not name or name in BUILT_IN or "." in name or ":" in name:
        raise ConfigError(
            f"a policy cannot be registered as {name!r}, must be a name without dots and colons that is not one of "
            f"{', '.join(BUILT_IN)}: choose another"
        )
    _arguments(name, policy)
    POLICIES[name] = policy


def find_policy(name: str) -> Any:
    """Return the policy of a name or an import path, see `POLICIES`.

    Raises:
        ConfigError: there is none, it cannot be imported, or it is no policy.
    """
    if name in POLICIES:
        return POLICIES[name]
    if "." not in name and ":" not in name:
        raise ConfigError(
            f"policy is {name!r}, must be one of {', '.join(POLICIES)}: choose one, or give the path of your own, "
            "my_module:MyPolicy"
        )
    try:
        policy = import_path(name)
    except ImportError as error:
        raise ConfigError(
            f"policy {name!r} cannot be imported: {error}. Name it as my_module:MyPolicy, with my_module in the "
            "working directory or installed"
        ) from error
    _arguments(name, policy)
    return policy


def is_stateful(policy: Any) -> bool:
    """Return whether a policy that `find_policy` gave makes one with a state of its own."""
    return _arguments("", policy) == 1


def _arguments(name: str, policy: Any) -> int:
    """Return how many arguments a policy takes: two are a function's, one is a stateful policy's."""
    count = 0
    if callable(policy):
        parameters = inspect.signature(policy).parameters.values()
        places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        count = sum(each.kind in places and each.default is each.empty for each in parameters)
    if count not in (1, 2):
        raise ConfigError(
            f"policy {name!r} is {policy!r}, must be a function of (view, context), or a subclass of StatefulPolicy, "
            "made from (info): see docs/training.md, A policy of your own"
        )
    return count
