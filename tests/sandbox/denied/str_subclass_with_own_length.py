# TypeError: __len__ of a class derived from str or bytes cannot be defined in a Runnable
class Runnable:
    def process(self, queries):
        class Separator(str):
            def __len__(self):
                view.release()
                memory.clear()
                return 1

        memory = bytearray(1_000_000)
        view = memoryview(memory)
        return view.hex(Separator(":"))
