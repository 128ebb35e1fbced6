"""What settings about records may be, apart from the code that reads records: the command line lists it at no cost."""

from hardsample.errors import ConfigError

GRADERS = ("math", "ocr", "counting", "grounding", "detection", "choice", "text")
DEFAULT_MAX_PIXELS = 89_478_485
"""Largest image that is opened, in pixels: Pillow's own limit (256 MB as RGB)."""
DEFAULT_TEMPLATE = "{letter}. {option}\nAnswer with the letter of the right option."
NO_TEMPLATE = "none"


def check_template(template: str) -> None:
    """Check that a template can list options.

    Raises:
        ConfigError: it is not "none" and not exactly one of its lines has {option}.
    """
    if template != NO_TEMPLATE and sum("{option}" in line for line in template.split("\n")) != 1:
        raise ConfigError(
            f"options_template is {template!r}: exactly one line must contain {{option}} (and may contain {{letter}}), "
            f"as in {DEFAULT_TEMPLATE!r}; or give none"
        )
