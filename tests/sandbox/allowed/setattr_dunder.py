class Runnable:
    def process(self, queries):
        for name in ("alpha", "beta"):
            setattr(self, name, name.upper())
        return [self.alpha, self.beta]
