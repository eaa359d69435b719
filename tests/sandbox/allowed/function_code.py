class Runnable:
    def process(self, queries):
        def helper(number):
            return number + 1

        compose = lambda *functions: lambda value: [value := function(value) for function in functions][-1]
        return compose(helper, helper)(1)
