# TypeError: 'slice' objects cannot be made by a call in a Runnable
class Taker:
    def __getitem__(self, at):
        return type(at)(0, 100, 2)


class Runnable:
    def process(self, queries):
        return Taker()[1:2]
