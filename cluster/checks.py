"""What names and numbers of a topology must be; each raises TopologyError, which says what to write."""

import re
import sys

from cluster.errors import TopologyError

# What Ray accepts as a label. It also keeps selector syntax such as "!gpu" out; names of tiers obey it too.
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


def check_text(value: object) -> str:
    """A text."""
    if not isinstance(value, str):
        raise TopologyError(f"{value!r:.80} is not a text; write it in quotes")
    return value


def check_label(value: object) -> None:
    """A name that Ray takes as a label."""
    if not _LABEL.fullmatch(check_text(value)):
        raise TopologyError(f"{value!r:.80} is no name; use at most 63 letters, digits, and inside it '-', '_' or '.'")


def check_number(value: object, key: str, *, positive: bool = False, whole: bool = False) -> None:
    """A finite number of 0 or more."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and not (whole and isinstance(value, float))
    # Compared rather than converted: false for a NaN, and exact for an integer too large for a float.
    if not (fits and (value > 0 if positive else value >= 0) and value <= sys.float_info.max):  # type: ignore[operator]
        kind = f"{'whole' if whole else 'finite'} number {'above 0' if positive else 'of 0 or more'}"
        raise TopologyError(f"{value!r:.80} is not a {kind}; write for example {1 if whole else 2.5}", key=key)
