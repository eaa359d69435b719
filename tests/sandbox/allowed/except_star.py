class Runnable:
    def process(self, queries):
        try:
            1 / 0
        except (ValueError, ZeroDivisionError):
            return "caught"
