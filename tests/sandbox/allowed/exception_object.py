class Runnable:
    def process(self, queries):
        class Error(Exception):
            def __init__(self, obj):
                super().__init__(f"no {obj}")
                self.subject = obj

        try:
            raise Error("price")
        except Error as err:
            return [err.subject, str(err)]
        else:
            return None
        finally:
            self.done = True
