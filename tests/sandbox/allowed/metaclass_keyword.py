class Runnable:
    def process(self, queries):
        registry = {}

        def register(cls):
            registry[cls.__name__] = cls
            return cls

        @register
        class Made:
            pass

        return list(registry)
