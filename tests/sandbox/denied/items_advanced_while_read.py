# ValueError: generator already executing
class Items:
    def __getitem__(self, at):
        list(reading)
        raise IndexError


reading = iter(Items())


class Runnable:
    def process(self, queries):
        return list(reading)
