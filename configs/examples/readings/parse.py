"""Read lines such as `t-1;21.5;C`, which gateways send some of at a time."""

from processor.runnable import BaseSecureRunnable, Reject


class Runnable(BaseSecureRunnable):
    def process(self, queries):
        for query, message in zip(queries, self.messages, strict=True):
            for line in query["lines"]:
                yield {**reading(line), "gateway": query["gateway"], "at": message.time}


def reading(line):
    try:
        sensor, value, unit = line.split(";")
        number = float(value)
    except ValueError:
        raise Reject(f"not a reading: {line!r}") from None
    if unit == "F":
        number = (number - 32) / 1.8
    elif unit != "C":
        raise Reject(f"unknown unit {unit!r} in {line!r}")
    return {"sensor": sensor, "celsius": round(number, 2)}
