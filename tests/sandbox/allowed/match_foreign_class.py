class Runnable:
    def process(self, queries):
        import datetime

        match datetime.date(2024, 2, 1):
            case datetime.date(year=2024, month=month):
                return month
