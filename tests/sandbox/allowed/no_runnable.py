class Runnable(BaseSecureRunnable):
    def init(self):
        self.context["n"] = 1

    def process(self, queries: List[Any]) -> List[Any]:
        self.context["n"] += 1
        return [self.context["n"], "n" in self.context]
