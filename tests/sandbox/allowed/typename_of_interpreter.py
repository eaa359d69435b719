import copy
import functools
from collections import namedtuple

Name = namedtuple("Name", "a")


class Reader:
    @classmethod
    def read(cls):
        return cls.__name__


class Runnable:
    def process(self, queries):
        read = copy.copy(Reader.read)
        return [read(), copy.copy(Name([1])), copy.deepcopy({"a": Name([1])})]
