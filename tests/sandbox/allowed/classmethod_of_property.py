import collections
import functools


class Maker:
    names = []

    @classmethod
    def make(cls, name):
        cls.names.append(name)
        return cls.__name__

    @classmethod
    @functools.lru_cache
    def size(cls):
        return 3

    largest = classmethod(lambda cls: max(cls.names))


class Runnable:
    def process(self, queries):
        chain = collections.ChainMap({"a": 1}, {"b": 2}).parents
        return [Maker.make("a"), Maker().make("b"), Maker.size(), Maker.largest(), dict(chain)]
