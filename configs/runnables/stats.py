"""The running statistics of one symbol; an event for each new record price after the first year."""


class Runnable:
    def init(self):
        self.context["count"] = 0
        self.context["mean"] = 0.0
        self.context["min"] = None
        self.context["max"] = None

    def process(self, queries):
        return [self.add(query) for query in queries]

    def add(self, tick):
        price = tick["price"]
        kept = self.context
        if kept["count"] >= 12 and price > kept["max"]:
            self.event("record", {"symbol": tick["symbol"], "date": tick["date"], "price": price})
        kept["count"] += 1
        kept["mean"] += (price - kept["mean"]) / kept["count"]
        kept["min"] = price if kept["min"] is None else min(kept["min"], price)
        kept["max"] = price if kept["max"] is None else max(kept["max"], price)
        return {
            "symbol": tick["symbol"],
            "date": tick["date"],
            "count": kept["count"],
            "mean": round(kept["mean"], 2),
            "min": kept["min"],
            "max": kept["max"],
            "last": price,
        }
