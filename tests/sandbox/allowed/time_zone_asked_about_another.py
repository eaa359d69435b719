from datetime import datetime, time, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo


class Shifted(tzinfo):
    zone = ZoneInfo("Europe/Berlin")

    def utcoffset(self, at):
        return self.zone.utcoffset(at) + timedelta(hours=1)

    def dst(self, at):
        return self.zone.dst(at)

    def tzname(self, at):
        return "+" + self.zone.tzname(at)


class Runnable:
    def process(self, queries):
        zone = ZoneInfo("Europe/Berlin")
        moments = [datetime(2026, 1, 31, 8), datetime(2026, 7, 1, 8), datetime(2026, 10, 25, 2, 30, fold=1)]
        found = [(str(zone.utcoffset(at)), str(zone.dst(at)), zone.tzname(at)) for at in moments]
        aware = [at.replace(tzinfo=zone) for at in moments]
        return [found, zone.utcoffset(None) is None, zone.tzname(None) is None, time(8, tzinfo=zone).utcoffset() is None,
                time(8, tzinfo=ZoneInfo("UTC")).tzname(), [str(at.astimezone(timezone.utc)) for at in aware],
                [at.tzname() for at in aware], str(datetime(2026, 7, 1, tzinfo=timezone.utc).astimezone(zone)),
                str(datetime(2026, 7, 1, tzinfo=Shifted())), datetime(2026, 7, 1, tzinfo=Shifted()).tzname()]
