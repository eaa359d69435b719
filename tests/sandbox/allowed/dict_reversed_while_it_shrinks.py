from collections import ChainMap, Counter, OrderedDict, defaultdict, deque


class Own(dict):
    def __reversed__(self):
        return iter(["own", *super().__reversed__()])


class Count:
    def __len__(self):
        return 3

    def __getitem__(self, at):
        return at * 10


def error(iterator, items):
    taken = [next(iterator)]
    items["new"] = 1
    try:
        return [*taken, *iterator]
    except RuntimeError as err:
        return str(err)


class Runnable:
    def process(self, queries):
        items = {"a": 1, "b": 2, "c": 3}
        views = [items, items.keys(), items.values(), items.items(), OrderedDict(items), defaultdict(int, items), Counter(items)]
        empty = [list(reversed({})), next(reversed({}), "none"), list(reversed({}.values()))]
        last = next(reversed(items))
        changed = dict(items)
        unsized = dict(items)
        backwards = reversed(unsized)
        unsized["d"] = 4
        try:
            late = next(backwards)
        except RuntimeError as err:
            late = str(err)
        return [[list(reversed(view)) for view in views], empty, last, list(items.__reversed__()), list(dict.__reversed__(items)),
                list(reversed(Own(x=1, y=2))), list(reversed([1, 2])), list(reversed("ab")), list(reversed(range(3))),
                list(reversed(Count())), list(reversed(deque([1, 2]))), [list(one) for one in map(reversed, [items, (1, 2)])],
                error(reversed(changed), changed), late, isinstance(reversed([1]), reversed),
                list(ChainMap({"p": 1}, {"q": 2})), [key for key in reversed(list(items))]]
