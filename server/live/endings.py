"""The bounds that all live streams share: their number, when a subscriber is heard of, and how a subscription ends."""

from collections.abc import Callable
from typing import Final

from processor.structured_log import structlog
from server.errors import Refused
from server.tenancy.keys import Key

HEARTBEAT: Final = 15.0
"""Seconds without a frame after which a subscriber gets a heartbeat."""
CHECK_EVERY: Final = 0.4
"""Seconds between two checks of the subscribers' keys and connections."""
GRACE: Final = 0.3
"""Seconds that an ended subscription has to send what it is sending and its error, before its task is cancelled."""
MAX_SUBSCRIBERS: Final = 20_000

log = structlog.get_logger(__name__)


def verdict(check: Callable[[], Key]) -> Refused | None:
    """Return why a subscriber's key is not valid any more; None: it is."""
    try:
        check()
    except Refused as refused:
        return refused
    except Exception:  # nobody knows whether the key is valid: end, and let the client connect again
        log.exception("feed_check_failed")
        return Refused("internal", "Internal server error")
    return None


def too_many() -> Refused:
    """Return the refusal of a subscriber beyond `MAX_SUBSCRIBERS`."""
    return Refused("unavailable", "This server takes no more subscribers now; try again", retry_after=2)


def stopping() -> Refused:
    """Return the error that ends the subscriptions of a server that stops."""
    return Refused("unavailable", "The server is stopping; connect again with the last id received", retry_after=1)
