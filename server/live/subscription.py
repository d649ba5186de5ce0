"""One reader of the live feed, and the readers of one project: how far each has got, and what they share."""

import asyncio
from collections.abc import Callable

from processor.view.view import View
from server.errors import Refused
from server.live.frames import ELSEWHERE, Frame, Mark, SharedFrames, Ticks
from server.live.resume_token import Bookmark
from server.tenancy.keys import Key


class Subscription:
    """One reader of the feed, and how far it has got.

    `check` returns the key that `secret` opens or raises `Refused`; `gone` returns True once the client has left.
    """

    def __init__(
        self,
        secret: str | None,
        check: Callable[[], Key],
        gone: Callable[[], bool],
        project: str,
        users: tuple[str, ...],
        binding: str,
    ) -> None:
        self.secret = secret
        self.check = check
        self.gone = gone
        self.project = project
        self.users = users
        """The ids of the filter; empty: all users of the project."""
        self.binding = binding
        """Stands for the project and the filter in the tokens."""
        self.bookmark: Bookmark | None = None
        """The place in an earlier feed to resume at; None: begin with a snapshot."""
        self.mark = Mark(ELSEWHERE, {})
        """All changes up to here have been sent."""
        self.token = ""
        """The token of the last frame sent."""
        self.noticed = 0
        """The number of the last budget notice sent."""
        self.numbers: set[int] = set()
        """The view's numbers of those of `users` that exist."""
        self.members = 0
        """How many users the project had when `numbers` was looked up."""
        self.wake = asyncio.Event()
        self.is_waiting = False
        self.refused: Refused | None = None
        """Why the subscription ended, if that is an error."""
        self.is_over = False
        self.last_sent = 0.0
        """When the last frame or heartbeat was sent, by the feed's monotonic clock."""
        self.task: asyncio.Task[object] | None = None
        """The task that reads the subscription."""

    def find_numbers(self, view: View) -> None:
        """Look up the users of the filter again if the project has new users since the last look."""
        members = view.members(self.project)
        if self.members != members:
            self.members = members
            self.numbers = set(view.find(self.project, self.users).values())

    def skip_to(self, mark: Mark) -> None:
        """Advance to `mark` without a frame: nothing up to it concerns this reader.

        Only a reader that waits, and is not about to look, has seen everything before `mark`.
        """
        if self.is_waiting and not self.wake.is_set():
            self.mark = mark


class SubscriptionGroup:
    """The subscriptions of one project, with the ticks and the frames that they share."""

    def __init__(self, name: str, tick: int) -> None:
        self.name = name
        self.subscriptions: set[Subscription] = set()
        self.ticks = Ticks(tick)
        self.shared = SharedFrames()
        self.opening: tuple[float, Mark, asyncio.Future[list[Frame]]] | None = None
        """The last snapshot made for several readers: when it was begun, its mark and its frames."""
