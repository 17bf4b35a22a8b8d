"""What the documents say exists, and what exists is in them."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from clivefs.cli import table
from clivefs.cli.completions import describe
from clivefs.cli.parser import build_parser
from clivefs.mounts.config import config

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
        ROOT / "docs/clivefs.service",
    ]
)
GUIDE = ROOT / "docs" / "guide.md"

_CALL = re.compile(r"(?:^ *(?:\$ )?|[;&|(=] *|/)clivefs((?: +[^\s`;|#)\\]+)+)", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)#]+?)(#[^)]*)?\)")


def _parsers() -> dict[tuple[str, ...], set[str]]:
    """The options of each way through the parser."""
    return {
        words.path: {name for option in words.options for name in option.names}
        for words in describe(build_parser(complete=True))
    }


PARSERS = _parsers()


def _code(document: Path) -> str:
    """What stands in code: blocks, indented lines and backticks. Of other files everything."""
    text = document.read_text()
    if document.suffix != ".md":
        return re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL)
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    indented = re.findall(r"^    .*$", rest, re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", rest)
    return "\n".join(part for part in (*blocks, *indented, *spans))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_documents_mention_exist(document: Path) -> None:
    for call in _CALL.findall(_code(document)):
        words = [word.strip("[],.:") for word in call.split()]
        if not re.fullmatch(r"[a-z]+", words[0]):
            continue  # an option, or a sentence about clivefs
        path = max((path for path in PARSERS if tuple(words[: len(path)]) == path), key=len)
        assert path, f"{document.name}: clivefs{call}: there is no such command"
        own = words[: words.index("--")] if "--" in words else words  # what follows is another command's
        options = {word.partition("=")[0] for word in own if word.startswith("-")}
        assert options <= PARSERS[path] | {"-h"}, f"{document.name}: clivefs{call}"


def test_every_command_is_in_the_guide() -> None:
    headings = re.findall(r"^### clivefs ([\w-]+)$", GUIDE.read_text(), re.MULTILINE)
    assert headings == [command.name for command in table.COMMANDS]


def test_every_option_of_the_guide_and_of_a_command_agree() -> None:
    """The synopsis in the guide has every option but those that all commands share."""
    shared = {"-h", "--help", "--json", "--store", "-w", "--workspace", "--at", "--debug"}
    text = GUIDE.read_text()
    for path, options in PARSERS.items():
        if not path or path == ("overlay",):
            continue
        synopsis = "\n".join(re.findall(rf"^    clivefs {' '.join(path)}\b.*$", text, re.MULTILINE))
        missing = {option for option in options - shared if option not in synopsis}
        assert not missing, f"{' '.join(path)}: {missing}"


@pytest.mark.parametrize("document", [each for each in DOCUMENTS if each.suffix == ".md"], ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target, _ in _LINK.findall(document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_examples_in_help_parse() -> None:
    """Each example of a command's help is accepted by its parser (nothing is run)."""
    parser = build_parser(complete=True)
    for command in table.COMMANDS:
        for line in table.load(command.name).EXAMPLES.splitlines():
            found = re.match(r"clivefs (.*)", line)
            if found is None:
                continue
            words = shlex.split(re.split(r"\s{2,}|\s[>|]\s", found.group(1))[0])
            parser.parse_args(words)
    assert isinstance(parser, argparse.ArgumentParser)


def test_the_example_workspace_is_valid() -> None:
    workspace = config.load(ROOT / "examples" / "Clive.toml")
    assert {entry.kind for entry in workspace.mounts} == {"archive", "git", "local"}
    assert {"overlay"} <= {entry.write for entry in workspace.mounts}
    assert workspace.warnings == ()


def test_the_toml_of_the_guide_is_valid() -> None:
    texts = re.findall(r"```toml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert texts
    for text in texts:
        assert config.parse(text, file="guide", root="/home/me/shop").name == "shop"
