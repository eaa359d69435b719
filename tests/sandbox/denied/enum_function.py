# TypeError: a member's name is an identifier that starts with a letter, not '__reduce__'
class Runnable:
    def process(self, queries):
        import enum

        return enum.Enum("Made", {"__reduce__": 1})
