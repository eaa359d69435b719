# E202 'clear' in a class pattern is not allowed.
class Runnable:
    def process(self, queries):
        match {}:
            case dict(clear=empty):
                empty()
