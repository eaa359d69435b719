# TypeError: positional patterns are for classes of your own
class Runnable:
    def process(self, queries):
        import datetime

        match self:
            case datetime.date(year):
                return year
