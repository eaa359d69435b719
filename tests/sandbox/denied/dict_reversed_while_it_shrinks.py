# ValueError: [(19999, 19999), 19999]
from collections import OrderedDict


class Own(dict):
    def backwards(self):
        return super().__reversed__()


class Runnable:
    def process(self, queries):
        found = set()
        for make in (dict, OrderedDict, Own):
            items = make((number, number) for number in range(20_000))
            for number in range(19_995):
                del items[number]
            iterators = [reversed(items), reversed(items.items()), reversed(items.keys()), reversed(items.values())]
            iterators += [items.__reversed__(), dict.__reversed__(items), getattr(items.keys(), "__reversed__")()]
            iterators += [iter(reversed(items)), type(reversed("ab"))(items), *map(reversed, [items])]
            if make is Own:
                iterators.append(items.backwards())
            for number in range(20_000, 40_000):
                items[number] = number
                del items[number]
            found.update(map(next, iterators))
        raise ValueError(sorted(found, key=str))
