"""Basic heap operations, in the context of a key: what a run makes of it is committed, or not at all."""


class Runnable(BaseSecureRunnable):
    def process(self, queries):
        print("✅ Connected to Authority Kernel")
        handle = self.heap.alloc("counter", {"value": 0, "name": "counter"})
        print(f"✅ Allocated counter with handle: {handle}")
        print(f"✅ Read counter: {self.heap.read(handle)}")
        version = self.heap.write(handle, [{"op": "replace", "path": "/value", "value": 42}])
        print(f"✅ Updated counter to version: {version}")
        print(f"✅ Updated counter: {self.heap.read(handle)}")
        self.heap.delete(handle)
        print("✅ Deleted counter handle")
