class Kinds:
    order = "order"
    _hidden = "hidden"


class Runnable:
    def process(self, queries):
        match "hidden":
            case Kinds.order:
                return [1]
            case Kinds._hidden:
                return [2]
