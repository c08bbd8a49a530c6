"""Hours of a schedule, and whether they are now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from segserve_operator.api.pool_scaling import ScheduledMinimum

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def is_open(hours: ScheduledMinimum, now_s: float) -> bool:
    """Return whether a Unix time is in these hours; none is if their time zone is not known."""
    try:
        zone = ZoneInfo(hours.time_zone)
    except (KeyError, ValueError, OSError):
        return False
    now = datetime.fromtimestamp(now_s, UTC)
    hour, minute = map(int, hours.start.split(":"))
    today = now.astimezone(zone).replace(hour=hour, minute=minute, second=0, microsecond=0)
    for days_ago in range(hours.duration.days + 2):
        start = today - timedelta(days=days_ago)
        on_day = not hours.days or _DAYS[start.weekday()] in hours.days
        if on_day and start.astimezone(UTC) <= now < start.astimezone(UTC) + hours.duration:
            return True
    return False
