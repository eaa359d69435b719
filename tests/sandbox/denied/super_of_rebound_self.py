# AttributeError: '__init__' is not accessible in a Runnable of super() in a method of the class
import string


class Letter(string.Template):
    def initializer(self):
        self = Letter
        return super().__init__


class Runnable:
    def process(self, queries):
        Letter("").initializer()(string.Template, "everyone's")
        return [string.Template.template]
