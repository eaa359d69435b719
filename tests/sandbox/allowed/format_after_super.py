class Runnable:
    def process(self, queries):
        class Base:
            def greet(self, name):
                return f"hello {name}"

        class Loud(Base):
            def greet(self, name):
                return super().greet(name).upper()

        class Old(Base):
            def greet(self, name):
                return super(Old, self).greet(name) + Base.__init__.__name__ if False else super(Old, self).greet(name)

        return [Loud().greet("ann"), Old().greet("bob")]
