"""Time zones by name, over the changes of the clock."""
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError
import zoneinfo


def check_conversion():
    moment = datetime(2024, 3, 31, 0, 30, tzinfo=timezone.utc)
    return [(moment + timedelta(hours=h)).astimezone(ZoneInfo("Europe/Berlin")).isoformat() for h in range(3)]


def check_many():
    moment = datetime(2024, 7, 4, 12, tzinfo=ZoneInfo("UTC"))
    names = ["America/New_York", "Asia/Tokyo", "Australia/Sydney", "Asia/Kolkata", "America/Sao_Paulo", "Europe/London", "Pacific/Auckland", "Africa/Cairo", "Etc/GMT+3", "US/Pacific"]
    return [f"{moment.astimezone(ZoneInfo(name)):%H:%M %Z}" for name in names]


def check_fold():
    zone = ZoneInfo("America/New_York")
    first = datetime(2024, 11, 3, 1, 30, tzinfo=zone)
    return [first.isoformat(), first.replace(fold=1).isoformat(), zone.key, str(zone), first.utcoffset() == timedelta(hours=-4), first.tzname()]


def check_unknown():
    found = []
    for name in ("Mars/Olympus", "../etc/passwd", "", "/etc/localtime"):
        try:
            ZoneInfo(name)
            found.append("?")
        except (ZoneInfoNotFoundError, ValueError):
            found.append("none")
    return found


def check_same():
    return [ZoneInfo("UTC") is ZoneInfo("UTC"), isinstance(zoneinfo.ZoneInfo("Asia/Tokyo"), ZoneInfo), "Europe/Paris" in zoneinfo.available_timezones()]


class Runnable:
    def process(self, queries):
        return [
            check_conversion(),
            check_many(),
            check_fold(),
            check_unknown(),
            check_same(),
        ]
