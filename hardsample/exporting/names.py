"""Names of the formats, apart from the code that writes them: the command line lists them at no cost."""

DEFAULT = "trl"
HUB = "hub"
TRAINERS = ("ms-swift", "llamafactory", "easyr1", "verl", "prime-rl", "vlmevalkit")
"""Formats that this room writes; `trl` is the datasets of `scoring.subsets`."""
NAMES = (DEFAULT, *TRAINERS, HUB)
