# TypeError: a 'generator' object cannot be copied in a Runnable
import copy


class Runnable:
    def process(self, queries):
        return [copy.copy(number for number in queries)]
