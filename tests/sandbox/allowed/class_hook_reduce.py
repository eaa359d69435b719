class Runnable:
    def process(self, queries):
        import copy

        class Node:
            def __init__(self):
                self.children = []
                self._seen = {1}

        node = Node()
        node.children.append(Node())
        other = copy.deepcopy(node)
        other.children[0].children.append(1)
        shallow = copy.copy(node)
        return [node.children[0].children, other.children[0].children, shallow.children is node.children, sorted(other._seen)]
