# E202 'super' without a call and a name is not allowed. Write super().method(...).
class Runnable:
    def process(self, queries):
        builder = super
        return builder
