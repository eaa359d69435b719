# TypeError: an attribute's name is a str, not Name
class Runnable:
    def process(self, queries):
        import enum

        class Name(str, enum.Enum):
            HIDDEN = "__dict__"

        return getattr(self, Name.HIDDEN)
