class Runnable:
    def process(self, queries):
        from enum import Enum, IntEnum, auto

        class Level(str, Enum):
            LOW = "low"
            HIGH = "high"

        class Rank(IntEnum):
            ONE = auto()
            TWO = auto()

        return [Level("low").name, Level.HIGH.value, Level.LOW == "low", Rank.TWO + 1, [r.name for r in Rank], f"{Rank.ONE:d}"]
