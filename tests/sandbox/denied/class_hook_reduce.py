# E202 '__reduce__' as a name is not allowed
class Runnable:
    def process(self, queries):
        import copy

        class Evil:
            def __reduce__(self):
                return (setattr, (json, "dumps", 1))

        return copy.copy(Evil())
