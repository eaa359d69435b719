"""What a Runnable does with its context, and as a class."""
import json
from collections import Counter, defaultdict, deque
from datetime import datetime, timezone


class Stats:
    """A mixin that counts."""

    def bump(self, name, by=1):
        counts = self.context.setdefault("counts", {})
        counts[name] = counts.get(name, 0) + by
        return counts[name]


class Base(Stats):
    limit = 3

    def handle(self, query):
        raise NotImplementedError(f"{type(self).__name__}.handle")

    def process(self, queries):
        self.bump("calls")
        return [self.handle(q) for q in queries]


class Runnable(Base):
    VERSION = "1"

    def init(self):
        self.context.setdefault("seen", [])
        self.context["started"] = False
        self._cache = {}

    def handle(self, query):
        key = query["id"]
        if key in self._cache:
            return {**query, "cached": True}
        self._cache[key] = query
        self.context["seen"] = (self.context["seen"] + [key])[-self.limit:]
        self.context["started"] |= True
        self.context.setdefault("totals", {}).setdefault(query["kind"], 0)
        self.context["totals"][query["kind"]] += query.get("n", 1)
        return {"id": key, "n": self.bump("handled"), "last": self.context["seen"][-1]}

    def process(self, queries):
        queries = list(queries) or [{"id": i % 4, "kind": "ab"[i % 2], "n": i} for i in range(6)]
        results = super().process(queries)
        return results + [json.loads(json.dumps(self.context, sort_keys=True)), self.VERSION, self.__class__.__name__, isinstance(self, Stats)]
