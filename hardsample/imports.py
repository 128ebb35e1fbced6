"""Objects of a user's own modules, by their import path."""

import importlib
import os
import sys
from typing import Any


def import_path(path: str) -> Any:
    """Import `my_module:name` or `my_module.name`; the working directory is looked in too.

    Args:
        path: of the module, which may be dotted itself, and the name in it.

    Raises:
        ImportError: the path names no module, there is no such module, or it has no such name.
    """
    module_name, _, name = path.rpartition(":" if ":" in path else ".")
    if not module_name or not name:
        raise ImportError(f"{path!r} names no module and object in it")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module = importlib.import_module(module_name)
    if not hasattr(module, name):
        raise ImportError(f"module {module_name!r} has no {name!r}")
    return getattr(module, name)
