"""A progress bar on standard error, if that is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from processor.core.visible import visible
from server.cli.sheet import terminal

Show = Callable[[int, int], None]
"""Shows progress: (done, total), in any unit."""


@contextmanager
def progress_bar(what: str, *, hidden: bool = False) -> Iterator[Callable[[str], Show]]:
    """Yield a function that starts a bar for a part, given its name; nothing is drawn if `hidden`."""
    console = terminal(err=True)
    progress = Progress(
        TextColumn(f"{what} {{task.description}}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=hidden or not console.is_terminal,
        redirect_stdout=False,  # standard output must not go to the console of standard error
    )

    def start(part: str) -> Show:
        task = progress.add_task(visible(part), total=None)
        return lambda done, total: progress.update(task, completed=done, total=total)

    with progress:
        yield start
