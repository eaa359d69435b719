"""Audit logging: objects, questions and an entry of one's own are in the audit of the route."""


class Runnable(BaseSecureRunnable):
    def process(self, queries):
        print("✅ Connected to Authority Kernel")
        handle = self.heap.alloc("audit_test", {"value": 100})
        self.heap.read(handle)
        self.heap.delete(handle)
        is_kept = self.audit("custom_event", {"action": "example_action", "user": "demo_user"})
        print("✅ Logged custom audit event" if is_kept else "ℹ️  This route has no audit")
