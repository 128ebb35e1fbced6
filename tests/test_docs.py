"""What README, docs and --help say: commands and files that exist, the field's words, links that lead somewhere."""

import re
import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import typer

from hardsample import files
from hardsample.cli.main import app
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.output import SCHEMA
from hardsample.scoring.store import _COLUMNS

REPO = Path(__file__).resolve().parent.parent
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
PRIVATE = re.compile(
    r"\bpictures?\b|\bset(ting|s)? aside\b|\bmend(ed|s|ing)?\b|\bembedded model\b|\bnull_weight\b|\bslice_\w+"
    r"|\bgo(es)? on\b|\bgroups without signal\b|\bstart_over\b|\bhardsample (attend|strata)\b|\bserver_wait\w*",
    re.IGNORECASE,
)
COMMANDS = typer.main.get_command(app).commands


def name_of(page):
    return str(page.relative_to(REPO))


def shell_lines(text):
    """Command lines of the fenced blocks, continued lines joined, comments cut off."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language not in ("", "bash", "sh") or "┃" in block:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            yield from re.split(r"\s+&&\s+", re.sub(r"\s+#\s.*", "", line))


def test_the_readme_is_short():
    assert len((REPO / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_use_the_words_of_the_field(page):
    assert [match.group() for match in PRIVATE.finditer(page.read_text())] == []


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_texts_use_the_words_of_the_field(command):
    parent = typer.main.get_command(app)
    click_command = parent if command is None else parent.commands[command]
    texts = [click_command.help or "", click_command.epilog or ""]
    texts += [f"{parameter.name} {getattr(parameter, 'help', '') or ''}" for parameter in click_command.params]
    assert [match.group() for text in texts for match in PRIVATE.finditer(text)] == []


def test_public_names_are_words_of_the_field():
    names = [*SCHEMA.names, *(field.name for field in fields(ScoringConfig)), *COMMANDS]
    import hardsample
    from hardsample.trainer.config import DifficultyAwareGRPOConfig

    assert is_dataclass(DifficultyAwareGRPOConfig)
    names += [field.name for field in fields(DifficultyAwareGRPOConfig)] + hardsample.__all__
    assert [name for name in names if PRIVATE.search(name.replace("_", " ")) or PRIVATE.search(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        if anchor and other.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}: {sorted(slugs)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_the_pages_exist(page):
    for line in shell_lines(page.read_text()):
        words = shlex.split(line)
        if not words or words[0] != "hardsample":
            continue
        assert len(words) > 1 and (words[1] in COMMANDS or words[1].startswith("--")), line
        if words[1].startswith("--"):
            continue
        command = COMMANDS[words[1]]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        given = {word.partition("=")[0] for word in words[2:] if word.startswith("--")} - {"--help"}
        if words[1] != "train":  # which also takes every option of TRL
            assert given <= known, f"{line}: {sorted(given - known)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_scripts_and_examples_of_the_pages_exist(page):
    for path in re.findall(r"\b((?:bench|examples|tests)/[\w/.-]+\.(?:py|yaml|ipynb|sh))", page.read_text()):
        assert (REPO / path).exists(), path


def test_the_reference_names_every_file_and_column():
    text = (REPO / "docs" / "files.md").read_text()
    columns = [*SCHEMA.names, *_COLUMNS.split(", ")]
    names = [value for name, value in vars(files).items() if name.isupper()]
    assert [name for name in (*names, *columns) if f"`{name}`" not in text and f"/{name}`" not in text] == []
