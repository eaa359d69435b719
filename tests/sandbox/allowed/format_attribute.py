class Runnable:
    def process(self, queries):
        from types import SimpleNamespace

        tick = SimpleNamespace(price=2.5, tags=["a", "b"])
        return [
            "{}-{:.2f}-{name!r}".format(1, 2.5, name="x"), "{0.price:>6} {0.tags[1]}".format(tick),
            "{a[b]:{width}}".format(a={"b": 1}, width=4), "{n}".format_map({"n": 1}), "{{}}".format(),
        ]
