"""Which sandboxes nobody looks after any more. Pure."""

import datetime as dt
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# Past its deadline a sandbox is killed and removed by its worker; that much longer says that nobody does.
GRACE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Known:
    """What a worker knows of the sandboxes of its id.

    `ended` are boots that are over for certain, `boot` is its own, `live` are the names that it looks after now, and
    `spared` the ids that it has still to take over.
    """

    ended: Collection[str] = ()
    boot: str = ""
    live: Collection[str] = ()
    spared: Collection[str] = ()


def leftovers(found: Iterable[Mapping[str, Any]], known: Known) -> list[str]:
    """The ids of those containers of one worker id (ContainerList) that are certainly nobody's.

    Others may belong to a living worker that was given the same id.
    """
    return [
        str(container["Id"])
        for container in found
        if container["Id"] not in known.spared
        and (container["Labels"].get("crucible.boot") in known.ended or _unwatched(container, known))
    ]


def _unwatched(container: Mapping[str, Any], known: Known) -> bool:
    """Whether it is of this very life, which does not look after it: its removal must have failed."""
    names = {name.removeprefix("/") for name in container.get("Names") or ()}
    return bool(known.boot) and container["Labels"].get("crucible.boot") == known.boot and not names & set(known.live)


def overdue(found: Iterable[Mapping[str, Any]], now: dt.datetime) -> list[str]:
    """The ids of the containers that are long past their deadlines, by their labels and this clock."""
    return [str(c["Id"]) for c in found if _late(c["Labels"].get("crucible.deadline", ""), now)]


def _late(deadline: str, now: dt.datetime) -> bool:
    try:
        return (now - dt.datetime.fromisoformat(deadline)).total_seconds() > GRACE_SECONDS
    except (ValueError, TypeError):  # TypeError: without a time zone
        return False
