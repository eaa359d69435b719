"""Windows over time: tumbling, sliding and session."""
import bisect
import dataclasses
import datetime as dt
from collections import defaultdict, deque
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone

UTC = timezone.utc


@dataclass
class Window:
    start: datetime
    length: timedelta = timedelta(minutes=5)
    values: list = field(default_factory=list)
    closed: bool = field(default=False, repr=False, compare=False)

    @property
    def end(self) -> datetime:
        return self.start + self.length

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end

    def add(self, value: float) -> "Window":
        self.values.append(value)
        return self


def floor(moment: datetime, step: timedelta) -> datetime:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return epoch + ((moment - epoch) // step) * step


TICKS = [
    ("2024-03-01T10:00:30+00:00", 1.0),
    ("2024-03-01T10:04:59+00:00", 2.0),
    ("2024-03-01T10:05:00+00:00", 3.0),
    ("2024-03-01T12:00:00+02:00", 4.0),
    ("2024-03-01T11:00:00.250000Z", 5.0),
]


def check_tumbling():
    windows = {}
    for text, value in TICKS:
        moment = datetime.fromisoformat(text)
        start = floor(moment, timedelta(minutes=5))
        window = windows.setdefault(start, Window(start))
        assert moment in window
        window.add(value)
    return [(w.start.isoformat(), w.end.strftime("%H:%M"), w.values) for w in windows.values()]


def check_sliding():
    events = deque()
    out = []
    for text, value in sorted(TICKS, key=lambda pair: datetime.fromisoformat(pair[0])):
        now = datetime.fromisoformat(text).astimezone(UTC)
        events.append((now, value))
        while events and now - events[0][0] > timedelta(minutes=10):
            events.popleft()
        out.append([now.time().isoformat(), sum(v for _, v in events)])
    return out


def check_sessions():
    gap, sessions = 60, []
    for at in [0, 10, 50, 200, 210, 1000]:
        if not sessions or at - sessions[-1][-1] > gap:
            sessions.append([])
        sessions[-1].append(at)
    return sessions


def check_dates():
    day = date(2024, 2, 28)
    return [
        (day + timedelta(days=2)).isoformat(), day.weekday(), day.isoweekday(), list(day.isocalendar()),
        day.replace(month=12).strftime("%a %d %b %Y"), date.fromisoformat("2024-01-05").toordinal(),
        datetime.combine(day, time(9, 30)).isoformat(sep=" ", timespec="minutes"),
        datetime.strptime("05/Mar/2024:10:11:12 +0100", "%d/%b/%Y:%H:%M:%S %z").isoformat(),
        datetime.fromtimestamp(1700000000, tz=UTC).isoformat(), datetime(2024, 1, 1, tzinfo=UTC).timestamp(),
        str(timedelta(days=1, hours=2, seconds=3)), timedelta(hours=5) / timedelta(minutes=30), divmod(timedelta(hours=5), timedelta(hours=2)),
        (datetime(2024, 3, 1) - datetime(2024, 2, 1)).days, f"{datetime(2024, 3, 1):%Y/%m/%d}", "{:%H:%M}".format(time(4, 5)),
        max(date(2024, 1, 1), date(2023, 1, 1)).year, dt.date.today() >= dt.date(2024, 1, 1), datetime.now(UTC).tzinfo is UTC,
        timezone(timedelta(hours=2), "X").tzname(None), datetime.min.year, date.max.isoformat(), time(1, 2, 3, 4).replace(hour=2).isoformat(),
        timedelta(milliseconds=1500).total_seconds(), -timedelta(days=1) < timedelta(0), abs(timedelta(days=-2)).days, dt.UTC.utcoffset(None) == timedelta(0),
    ] and [str(x) for x in (divmod(timedelta(hours=5), timedelta(hours=2)))] + [
        (day + timedelta(days=2)).isoformat(), day.weekday(), list(day.isocalendar()), datetime.strptime("05/Mar/2024:10:11:12 +0100", "%d/%b/%Y:%H:%M:%S %z").isoformat(),
    ]


def check_replace():
    w = Window(datetime(2024, 1, 1))
    other = dataclasses.replace(w, length=timedelta(hours=1))
    return [repr(w), other.end.isoformat(), w == Window(datetime(2024, 1, 1), closed=True), str(dataclasses.asdict(w)["start"]), [f.name for f in dataclasses.fields(Window)]]


def check_business_days():
    holidays = {date(2024, 1, 1)}
    day, left = date(2023, 12, 29), 3
    while left:
        day += timedelta(days=1)
        if day.weekday() < 5 and day not in holidays:
            left -= 1
    return day.isoformat()


def check_buckets():
    edges = [10, 100, 1000]
    names = ["tiny", "small", "large", "huge"]
    return [names[bisect.bisect(edges, n)] for n in (5, 10, 99, 5000)]


class Fixed(dt.tzinfo):
    def utcoffset(self, moment):
        return timedelta(hours=5, minutes=30)

    def dst(self, moment):
        return timedelta(0)

    def tzname(self, moment):
        return "IST"


def check_own_zone():
    moment = datetime(2024, 1, 1, 12, tzinfo=Fixed())
    return [moment.isoformat(), moment.tzname(), moment.astimezone(UTC).isoformat()]


class Runnable:
    def process(self, queries):
        return [
            check_tumbling(),
            check_sliding(),
            check_sessions(),
            check_dates(),
            check_replace(),
            check_business_days(),
            check_buckets(),
            check_own_zone(),
        ]
