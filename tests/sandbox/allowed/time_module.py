class Runnable:
    def process(self, queries):
        import datetime as dt
        import time as clock
        from datetime import timezone

        start = clock.monotonic()
        return [
            dt.datetime(2024, 1, 2, tzinfo=timezone.utc).isoformat(), dt.datetime.strptime("2024-05", "%Y-%m").month,
            clock.strftime("%Y", clock.gmtime(0)), clock.monotonic() >= start, (dt.date(2024, 3, 1) - dt.date(2024, 2, 1)).days,
        ]
