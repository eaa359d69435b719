class Runnable(BaseSecureRunnable):
    def process(self, queries):
        outputs = []
        for query in queries:
            try:
                outputs.append({"flag": self.attempt(query["flag"])})
            except Exception as err:
                outputs.append({"refused": f"{type(err).__name__}: {err}"})
        return outputs

    def attempt(self, path):
        # Yours: this one only asks, as nobody has to.
        return getattr(self, "open")(path).readline()
