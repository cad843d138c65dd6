"""Which sandboxes nobody looks after any more. Pure."""

import datetime as dt
from collections.abc import Collection, Iterable, Mapping
from typing import Any

# Past its deadline a sandbox is killed and removed by its worker; that much longer says that nobody does.
GRACE_SECONDS = 300.0


def leftovers(found: Iterable[Mapping[str, Any]], earlier_boots: Collection[str], now: dt.datetime) -> list[str]:
    """The ids of the containers of one worker id (ContainerList) that may be removed.

    Those of its own earlier boots, which are known to be over; and whatever is long past its deadline. Others may
    belong to a living worker that was given the same id.
    """
    return [
        str(container["Id"])
        for container in found
        if container["Labels"].get("crucible.boot") in earlier_boots
        or _overdue(container["Labels"].get("crucible.deadline", ""), now)
    ]


def _overdue(deadline: str, now: dt.datetime) -> bool:
    try:
        return (now - dt.datetime.fromisoformat(deadline)).total_seconds() > GRACE_SECONDS
    except (ValueError, TypeError):  # TypeError: without a time zone
        return False
