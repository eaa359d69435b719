# TypeError: an Enum is made by a class statement in a Runnable
class Runnable:
    def process(self, queries):
        import enum

        return enum.Enum("Made", {"mro": 1})
