class Runnable:
    def init(self):
        self.context["counter"] = 0

    def process(self, queries):
        documents = []
        for query in queries:
            self.context["counter"] += 1
            documents.append({"index": self.context["counter"], **query})
        return documents
