"""Where rows of users belong, read from their keys: many rows at once, as most of them share all but the user."""

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from processor.core.growing_arrays import I64
from processor.core.kernel.loaded import kernel
from processor.core.tables import table_rows

GroupKey = tuple[str, int, str, str, str]
"""project, day, provider, model, environment: what a user's row is kept by, without the user."""

_group_of = attrgetter("project", "day", "provider", "model", "environment")


class UserPlaces(NamedTuple):
    """The places of rows."""

    groups: list[GroupKey]
    """In the order in which they come."""
    codes: I64
    """For each row the place of its group in `groups`."""
    users: list[str | None]
    """Of each row."""


def user_places(partition: int, keys: Sequence[bytes]) -> UserPlaces:
    """Read the keys of users' rows of a partition. Raises `ValueError` for a key of another format.

    The compiled kernel, where it runs, tells groups by their bytes, so that only one key of each is read here.
    """
    return plain_places(partition, keys) or _by_values(table_rows.decode_users(keys))


def _by_values(places: Sequence[table_rows.UserPlace]) -> UserPlaces:
    numbers: dict[GroupKey, int] = {}
    codes = [numbers.setdefault(group, len(numbers)) for group in map(_group_of, places)]
    return UserPlaces(list(numbers), np.array(codes, np.int64), [place.user for place in places])


def plain_places(partition: int, keys: Sequence[bytes]) -> UserPlaces | None:
    """Return the same by the kernel. None: there is none, or a key is not one of a user's row as `user_rows` writes it,
    or a user's name has something to escape."""
    found = None if kernel is None else kernel.split_keys(list(keys), b'[%d,"user",' % partition)
    if found is None:
        return None
    codes, texts, users = found
    try:
        places = table_rows.decode_users(texts)
    except ValueError:
        return None  # which key it is, the other way says
    groups: list[GroupKey] = list(map(_group_of, places))
    if len(set(groups)) < len(groups):
        return None
    return UserPlaces(groups, np.frombuffer(codes, np.int64), users)
