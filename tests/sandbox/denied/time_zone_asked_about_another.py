# TypeError: a time zone is asked about a datetime, not about a Moment
from datetime import date
from zoneinfo import ZoneInfo


class Moment:
    __slots__ = ("a", "b", "c", "d")
    hour = minute = second = 5

    def toordinal(self):
        return date(2020, 1, 1).toordinal()


class Runnable:
    def process(self, queries):
        zone = ZoneInfo("Europe/Berlin")
        for length in range(100):
            moment = Moment()
            moment.a = moment.b = moment.c = moment.d = "x" * length
            zone.utcoffset(moment)
