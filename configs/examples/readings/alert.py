"""Say when a sensor is further from its usual value than it ordinarily varies."""

from processor.runnable import BaseSecureRunnable

WEIGHT = 0.2  # of the newest reading in the moving average
FEW = 5


class Runnable(BaseSecureRunnable):
    def init(self):
        self.context["count"] = 0
        self.context["mean"] = 0.0
        self.context["spread"] = 0.0

    def process(self, queries):
        for reading in queries:
            if alert := self.judged(reading["celsius"]):
                yield {"sensor": self.key, **alert}

    def judged(self, value):
        kept = self.context
        distance = abs(value - kept["mean"])
        is_odd = kept["count"] >= FEW and distance > max(1.0, 4 * kept["spread"])
        alert = {"celsius": value, "usual": round(kept["mean"], 2)} if is_odd else None
        if kept["count"] == 0:
            kept["mean"] = value
        elif not is_odd:
            kept["mean"] += WEIGHT * (value - kept["mean"])
            kept["spread"] += WEIGHT * (distance - kept["spread"])
        kept["count"] += 1
        return alert
