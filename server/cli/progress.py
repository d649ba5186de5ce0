"""A progress bar on standard error, if that is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from processor.core.visible import visible
from server.cli.output import terminal

Show = Callable[[int, int], None]
"""(done, total), in whatever unit."""


@contextmanager
def progress_bar(what: str, *, hidden: bool = False) -> Iterator[Callable[[str], Show]]:
    """Gives a function that starts a bar of its own for each part, by its name; none is drawn if it is `hidden`."""
    console = terminal(err=True)
    progress = Progress(
        TextColumn(f"{what} {{task.description}}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=hidden or not console.is_terminal,
        redirect_stdout=False,  # what a command prints is not for the console of standard error
    )

    def start(part: str) -> Show:
        task = progress.add_task(visible(part), total=None)
        return lambda done, total: progress.update(task, completed=done, total=total)

    with progress:
        yield start
