"""What the documents promise: they are current, in one form, and what they name is there."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import pytest

from server.cli import commands
from tools import reference

ROOT: Final = Path(__file__).resolve().parent.parent
DOCUMENTS: Final = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
RECORDS: Final = sorted((ROOT / "docs" / "decisions").glob("*.md"))
HEADER: Final = ("Number", "Status", "Date", "Supersedes")
PARTS: Final = ["Context", "Decision", "Consequences", "Measurements"]
# A file of ours in backticks: `server/status.py`, `tests/unit/test_money.py::test_name`.
PATH: Final = re.compile(r"`((?:server|processor|protos|tests|tools|deploy|docs)/[\w./-]+\.\w+)(?:::\w+)?`")
LINK: Final = re.compile(r"\]\(([^)\s]+)\)")
TESTS: Final = {
    name
    for file in (ROOT / "tests").rglob("test_*.py")
    for name in (file.stem, *re.findall(r"def (test_\w+)\(", file.read_text()))
}
VARIES: Final = "…"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose_of(path: Path) -> str:
    """Return a document without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose_of(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_reference_is_current() -> None:
    assert reference.stale() == [], "run `make docs`"


def test_nobody_has_to_read_a_long_readme() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_figures_of_the_readme_stand_where_they_are_measured() -> None:
    """A figure that was measured anew is changed in both places."""
    table = (ROOT / "README.md").read_text().partition("## Figures")[2].partition("## Further")[0]
    figures = re.findall(r"\d[\d,.]*\d", "".join(line for line in table.splitlines() if line.startswith("|")))
    measured = "".join((ROOT / "docs" / name).read_text() for name in ("performance.md", "reliability.md"))
    assert len(figures) > 10
    assert [
        figure for figure in figures if not re.search(rf"(?<![\d,.]){re.escape(figure)}(?![\d,]|\.\d)", measured)
    ] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(prose_of(path)):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_files_that_are_named_are_there(path: Path) -> None:
    assert [name for name in PATH.findall(path.read_text()) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_tests_that_are_named_are_there(path: Path) -> None:
    """By the name of their file or their own, also where a document leaves their folder out."""
    named = set(re.findall(r"\b(test_\w+\w)\b", path.read_text()))
    assert {name for name in named if name not in TESTS} == set()


def test_every_document_can_be_reached_from_the_list() -> None:
    """docs/README.md lists all but pictures and decisions, which it names by their folder."""
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / link).resolve() for link in LINK.findall(index.read_text())}
    wanted = {path for path in DOCUMENTS if path.parent.name != "decisions" and path.name != "README.md"}
    assert wanted <= listed, wanted - listed


def header_of(path: Path) -> dict[str, str]:
    """Return the header of a record; a long entry goes on in the next line."""
    lines = re.sub(r"\n  +", " ", path.read_text().partition("## ")[0]).splitlines()
    return dict(line.removeprefix("- ").split(": ", 1) for line in lines if line.startswith("- "))


@pytest.mark.parametrize("path", RECORDS, ids=name_of)
def test_a_record_has_the_form(path: Path) -> None:
    number = path.name[:4]
    lines = path.read_text().splitlines()
    assert lines[0].startswith(f"# {number}: ")
    header = header_of(path)
    assert tuple(header) == HEADER
    assert header["Number"] == number
    assert re.fullmatch(r"(accepted|proposed|superseded by \d{4})(; .+)?", header["Status"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", header["Date"])
    assert [line.removeprefix("## ") for line in lines if line.startswith("## ")] == PARTS


def test_a_record_that_supersedes_another_is_named_there() -> None:
    """By number, in the status of the older one."""
    for path in RECORDS:
        for older in re.findall(r"\b\d{4}\b", header_of(path)["Supersedes"]):
            (found,) = [record for record in RECORDS if record.name.startswith(older)]
            assert path.name[:4] in header_of(found)["Status"], f"{found.name} does not say so"


def strings() -> Iterator[str]:
    """Walk all text that the program may print."""
    for folder in ("server", "processor"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_texts_to_look_for_are_those_of_the_program() -> None:
    """The first column of the guide's tables quotes errors; what varies in them is a `…`."""
    said = "\n".join(strings())
    guide = (ROOT / "docs" / "guides" / "troubleshoot.md").read_text()
    quoted = [
        text for line in guide.splitlines() if line.startswith("| `") for text in line.split("|")[1].split("`")[1::2]
    ]
    assert len(quoted) > 40
    parts = [part.strip() for text in quoted for part in text.split(VARIES) if part.strip()]
    assert [part for part in parts if part not in said] == []


def commands_of(path: Path) -> Iterator[list[str]]:
    """Yield the arguments of each call of `spendstream` in a document's blocks of shell code."""
    for block in re.findall(r"^ *```sh\n(.*?)^ *```$", path.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\|\|?|&&", re.sub(r"\s#\s.*", "", line)):
                words = shlex.split(part.strip()) if "spendstream " in part and part.count("'") % 2 == 0 else []
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    del words[0]
                if words and words[0] in ("spendstream", ".venv/bin/spendstream"):
                    yield words[1 : words.index(">")] if ">" in words else words[1:]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_are_typed_as_the_program_takes_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names, flags and values are those of the command line; nothing is run."""
    monkeypatch.setenv("SPENDSTREAM_KEY", "lqt_" + 64 * "0")
    for words in commands_of(path):
        command: click.Command = commands.main
        context = click.Context(command)
        while isinstance(command, click.Group) and words:
            found = command.get_command(context, words[0])
            assert found is not None, words
            command, context, words = found, click.Context(found, parent=context), words[1:]
        command.make_context(command.name, [*words], parent=context.parent)


def test_there_are_commands_to_check() -> None:
    assert sum(1 for path in DOCUMENTS for _ in commands_of(path)) > 50
