# E202 '__class__' in a pattern is not allowed
class Runnable:
    def process(self, queries):
        match queries:
            case self.__class__.kind:
                return [1]
