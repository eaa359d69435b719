"""When something is due: the words that a schedule is written in, checked before a server sees them.

The server of the app's stream keeps the time and sends the messages; these are its rules (ADR-51, and what
nats-server 2.15 takes), so that a schedule that it would refuse is a fault of the configuration, at its line.
Nothing here reads a clock.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import available_timezones

_NAMED = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
_AT = re.compile(r"@at (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d))\Z")
_EVERY = re.compile(r"@every ((?:\d+(?:\.\d+)?(?:h|ms|m|s))+)\Z")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_YEARS_S = 100 * 365 * 86_400.0
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTH_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_HOW = (
    "it is `@every 30s`, `@at 2026-12-01T08:00:00Z`, `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`, "
    "or six fields of cron: second, minute, hour, day of the month, month, day of the week"
)


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    lowest: int
    highest: int
    names: tuple[str, ...] = ()


_FIELDS = (
    _Field("second", 0, 59),
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of the month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of the week", 0, 6, _DAYS),
)


def check_schedule(text: str) -> str:
    """Return `text`, with single spaces, if it is a schedule; else ValueError says why not."""
    text = " ".join(text.split())
    if text.startswith("@at "):
        _check_time(text)
    elif text.startswith("@every "):
        _check_period(text)
    elif text.startswith("@"):
        if text not in _NAMED:
            raise ValueError(f"{_show(text)} is no schedule; {_HOW}")
    else:
        _check_cron(text)
    return text


def of_crontab(text: str) -> str:
    """The schedule that `text` is, where cron may also have the five fields of a crontab, and Sunday as 7.

    ValueError says why it is none.
    """
    parts = text.split()
    if len(parts) == len(_FIELDS) - 1 and not text.lstrip().startswith("@"):
        parts = ["0", *parts]
    if len(parts) == len(_FIELDS) and not text.lstrip().startswith("@"):
        parts[-1] = ",".join(map(_weekdays, parts[-1].split(",")))
    return check_schedule(" ".join(parts))


def _weekdays(span: str) -> str:
    """A part of the days of the week in which Sunday is 0, never 7: `5-7` is `5,6,0`."""
    days, _, step = span.partition("/")
    first, _, last = days.partition("-")
    if days == "7":
        return "0"
    if last != "7" or first not in tuple("01234567") or not (step or "1").isdecimal() or step == "0":
        return span
    return ",".join(str(day % 7) for day in range(int(first), 8, int(step or 1)))


def check_time_zone(name: str) -> str:
    """Return `name` if it is the name of a time zone; else ValueError."""
    known = available_timezones()
    if known and name not in known:  # a machine may have none; the server has its own
        raise ValueError(f"{_show(name)} is no time zone; one is named as in Europe/Berlin, or UTC")
    return name


def is_once(schedule: str) -> bool:
    """Whether it is due a single time."""
    return schedule.startswith("@at ")


def has_calendar(schedule: str) -> bool:
    """Whether it is due at times of day, which a time zone moves."""
    return not schedule.startswith(("@at ", "@every "))


def _check_time(text: str) -> None:
    found = _AT.match(text)
    try:
        if not found:
            raise ValueError
        datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", found[1]))
    except ValueError:
        raise ValueError(
            f"{_show(text)} has no time such as 2026-12-01T08:00:00Z or 2026-12-01T08:00:00+01:00"
        ) from None


def _check_period(text: str) -> None:
    found = _EVERY.match(text)
    if not found:
        raise ValueError(f"{_show(text)} has no period such as 30s, 5m or 1h30m (units h, m, s, ms)")
    period_s = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(found[1]))
    if not 1 <= period_s <= _YEARS_S:
        raise ValueError(
            f"{_show(text)} is {period_s:g} s; the shortest period is 1 s, the longest 100 years"
        )


def _check_cron(text: str) -> None:
    parts = text.split(" ")
    if len(parts) != len(_FIELDS):
        count = f"{len(parts)} field{'' if len(parts) == 1 else 's'}"
        hint = ": cron of five fields has no seconds, put `0` in front of it" if len(parts) == 5 else ""
        raise ValueError(f"{_show(text)} has {count}{hint}; {_HOW}")
    values = [_values(part, field) for part, field in zip(parts, _FIELDS, strict=True)]
    days, months = values[3], values[4]
    # A day of the week is an alternative to one of the month, unless either is free.
    is_any_weekday = parts[5][:1] in "*?"
    if is_any_weekday and not any(min(days) <= _MONTH_DAYS[month - 1] for month in months):
        raise ValueError(f"{_show(text)} is never due: none of its months has a day {min(days)}")


def _values(text: str, field: _Field) -> Sequence[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        if span in ("*", "?"):
            low, high = field.lowest, field.highest
        else:
            low = _number(first, field, text)
            high = _number(last, field, text) if dash else field.highest if slash else low
        if slash and not (step.isascii() and step.isdecimal() and int(step)):
            raise ValueError(f"the {field.name} is {_show(text)}, and a step is a number above 0")
        if low > high:
            raise ValueError(f"the {field.name} is {_show(text)}, which goes from {low} down to {high}")
        found.update(range(low, high + 1, int(step) if slash else 1))
    return sorted(found)


def _number(text: str, field: _Field, whole: str) -> int:
    if text.lower() in field.names:
        return field.lowest + field.names.index(text.lower())
    if text.isascii() and text.isdecimal() and field.lowest <= int(text) <= field.highest:
        return int(text)
    names = f", or {field.names[0]} to {field.names[-1]}" if field.names else ""
    raise ValueError(
        f"the {field.name} is {_show(whole)}, where {field.lowest} to {field.highest}{names} may stand"
    )


def _show(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
