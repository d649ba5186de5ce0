"""The process's limit of open files, which systems set low for programs that wait with `select`."""

import resource


def raise_limit() -> int:
    """Raise the limit as far as this process may, and return it; -1: there is none. A refusal is no fault."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # a system that has a lower limit than it says
        return soft
    return hard
