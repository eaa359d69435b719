class Runnable:
    def process(self, queries):
        from types import SimpleNamespace

        class Row:
            def __init__(self, **columns):
                self._kept = 1
                self.__dict__.update(columns)

            def public(self):
                return {name: value for name, value in vars(self).items() if not name.startswith("_")}

        row = Row(a=1)
        row.__dict__["b"] = row.__dict__["a"] + 1
        row.__dict__["b"] += 1
        del row.__dict__["a"]
        space = SimpleNamespace(a=1)
        vars(space).update(_b=2)
        space.c = 3
        return [row.public(), row.__dict__, vars(space), row.__dict__.setdefault("d", 4), row.__dict__.pop("d", None), row.b]
