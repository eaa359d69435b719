import collections.abc
import json
import math as m
import urllib.parse
import urllib.parse as parse
from collections import Counter as Tally, defaultdict
from datetime import datetime as moment, timedelta

class Runnable:
    def process(self, queries):
        import statistics
        from itertools import chain

        counts = defaultdict(int)
        for word in chain("ab", "a"):
            counts[word] += 1
        return [
            json.dumps(counts), m.floor(2.5), urllib.parse.quote("a b"), parse.unquote("a%20b"),
            Tally("aab").most_common(1), (moment(2024, 1, 1) + timedelta(days=1)).isoformat(),
            statistics.mean([1, 2, 3]), isinstance([], collections.abc.Sequence),
        ]
