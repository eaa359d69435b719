class Refused(Exception):
    pass


class Runnable:
    def process(self, queries):
        refused = Refused("a")
        Exception.__setattr__(refused, "why", 1)
        return [refused.why]
