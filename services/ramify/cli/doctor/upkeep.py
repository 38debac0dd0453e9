"""A check of what is kept for nothing."""

from sqlalchemy import func, select

from ramify.cli.doctor.findings import Finding, Level, size
from ramify.cli.doctor.subject import Subject
from ramify.cli.output import counted, duration
from ramify.store.clock import now_ms
from ramify.store.schema import segments, slots

FREED_WITHIN_S = 3600  # what could be freed for longer has been forgotten


async def freeable(subject: Subject) -> Finding:
    """Segments that no slot needs any more, and that are still there."""
    floor = select(func.min(slots.c.floor)).scalar_subquery()
    stored = func.length(segments.c.nodes) + func.length(segments.c.scores)
    query = select(func.count(), func.sum(stored), func.min(segments.c.created_ms)).where(segments.c.segment_id < floor)
    async with subject.database.read() as connection:
        count, found, oldest_ms = (await connection.execute(query)).one()
        total = int(await connection.scalar(select(func.count()).select_from(segments)) or 0)
    if not count:
        return Finding("upkeep", Level.OK, f"{counted(total, 'segment')}, none of them to be freed")
    since_s = (now_ms() - oldest_ms) / 1000
    told = f"{count:,} of {counted(total, 'segment')} ({size(found)}) could be freed"
    if since_s <= FREED_WITHIN_S:
        return Finding("upkeep", Level.OK, told)
    return Finding(
        "upkeep",
        Level.WARN,
        f"{told}, the oldest from {duration(since_s)} ago",
        why="they only take space",
        remedy="shards free them now and then: start the system, or look into the shards' logs",
    )
