"""What the program says about a command line that it cannot run."""

import pytest
from click.testing import CliRunner

from server.cli.commands import main


@pytest.mark.parametrize("arguments", [[], ["keys"], ["budgets"], ["dlq"]], ids=" ".join)
def test_without_arguments_the_help_is_shown_on_its_lines(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert done.output.startswith("Usage: ")
    assert len(done.output.splitlines()) > 5
    assert "\\n" not in done.output
    assert done.output == CliRunner().invoke(main, [*arguments, "--help"]).output


def test_an_argument_is_quoted_on_one_line() -> None:
    done = CliRunner().invoke(main, ["keys", "list\nDone\x1b[2J"])
    assert done.exit_code == 2
    assert not {"Done", "\x1b"} & set(done.output.splitlines())
    assert "\x1b" not in done.output
