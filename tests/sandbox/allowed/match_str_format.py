class Runnable:
    def process(self, queries):
        match "text":
            case str(text):
                return text
