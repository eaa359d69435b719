# ValueError: a type's name is an identifier, not '__getattribute__'
import copy
import functools
from collections import namedtuple


class Runnable:
    def process(self, queries):
        class Reader:
            @classmethod
            @functools.wraps(namedtuple("__getattribute__", "a"))
            def read(cls):
                pass

        return [copy.copy(Reader.read)(queries, "__class__")]
