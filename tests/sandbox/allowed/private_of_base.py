class Runnable:
    def process(self, queries):
        class Safe:
            def __init__(self):
                self.__code = 1
                self._open = 2
                self.__half_ = 3

            def __secret(self):
                return self.__code

            def read(self):
                return [self.__secret(), self._open, self.__half_, getattr(self, "_Safe__code")]

        safe = Safe()
        return [safe.read(), hasattr(safe, "__code"), safe._Safe__code]
