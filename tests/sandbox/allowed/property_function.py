class Runnable:
    def process(self, queries):
        class Temperature:
            def __init__(self):
                self._celsius = 20

            @property
            def fahrenheit(self):
                return self._celsius * 9 / 5 + 32

            @fahrenheit.deleter
            def fahrenheit(self):
                self._celsius = 0

        temperature = Temperature()
        del temperature.fahrenheit
        return temperature.fahrenheit
