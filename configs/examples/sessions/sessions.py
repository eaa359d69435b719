"""The sessions of one visitor, by the times at which the stream stored the clicks."""

from processor.runnable import BaseSecureRunnable

GAP_S = 1800


class Runnable(BaseSecureRunnable):
    def init(self):
        self.context["open"] = None  # the session that goes on: start, end, pages
        self.context["check"] = False  # whether a check is under way

    def process(self, queries):
        for query, message in zip(queries, self.messages, strict=True):
            now_s = message.time.timestamp()
            session = self.context["open"]
            if session is not None and now_s - session["end"] >= GAP_S:
                yield self.closed(session)
            if message.subject == "clicks.check":
                self.context["check"] = False
            else:
                self.add(query["page"], now_s)
            self.check_later(now_s)

    def add(self, page, now_s):
        session = self.context["open"] or {"start": now_s, "pages": []}
        session["end"] = now_s
        session["pages"].append(page)
        self.context["open"] = session

    def closed(self, session):
        self.context["open"] = None
        return {
            "visitor": self.key,
            "pages": session["pages"],
            "seconds": round(session["end"] - session["start"], 3),
        }

    def check_later(self, now_s):
        session = self.context["open"]
        if session is None or self.context["check"]:
            return
        self.context["check"] = True
        self.emit("clicks.check", {"visitor": self.key}, delay_s=session["end"] + GAP_S - now_s)
