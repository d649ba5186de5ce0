"""A progress bar on standard error, if that is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Show = Callable[[int, int], None]
"""(done, total), in whatever unit."""


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[str], Show]]:
    """Gives a function that starts a bar of its own for each part, by its name."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn(f"{what} {{task.description}}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )

    def start(part: str) -> Show:
        task = progress.add_task(part, total=None)
        return lambda done, total: progress.update(task, completed=done, total=total)

    with progress:
        yield start
