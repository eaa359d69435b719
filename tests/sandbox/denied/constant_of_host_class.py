# AttributeError: 'mappingproxy' object has no attribute 'clear'
import textwrap


class Runnable:
    def process(self, queries):
        return [textwrap.TextWrapper.unicode_whitespace_trans.clear()]
