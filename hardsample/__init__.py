"""hardsample: find the image-and-text samples worth training a vision-language model on, and train on them.

Nothing of ours is imported here eagerly, so that ``import hardsample`` costs nothing.
"""

from pathlib import Path as _Path

__version__ = "0.1.0"

# The repository keeps kernels/ and trainer/ beside this folder; setuptools maps them to hardsample.kernels and
# hardsample.trainer. In a checkout they are found by looking one folder up. kernels/ has no __init__.py, so that the
# PyPI package `kernels`, which transformers imports, is never shadowed from the repository root.
if not (_Path(__file__).parent / "kernels").is_dir():
    __path__.append(str(_Path(__file__).parent.parent))
