class Runnable:
    def process(self, queries):
        from enum import Enum, Flag, unique

        @unique
        class Color(Enum):
            RED = 1
            BLUE = 2

            @property
            def label(self):
                return self.name.lower()

            @classmethod
            def _missing_(cls, value):
                return cls.RED

        class Access(Flag):
            READ = 1
            WRITE = 2

        match Color.BLUE:
            case Color.RED:
                found = "red"
            case Color.BLUE:
                found = "blue"
        return [
            Color(2).label, Color["RED"].value, [c.name for c in Color], found, Color(99).name, Color.RED in Color,
            list(Color.__members__), (Access.READ | Access.WRITE).value, Access.READ in (Access.READ | Access.WRITE), len(Color),
        ]
