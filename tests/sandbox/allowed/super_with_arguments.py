class Runnable:
    def process(self, queries):
        class A:
            def who(self):
                return "A"

        class B(A):
            def who(self):
                return super(B, self).who() + "B"

        return B().who()
