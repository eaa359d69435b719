"""Ask before doing, and read in a denial what would allow it."""


class Runnable(BaseSecureRunnable):
    def process(self, queries):
        print("✅ Connected to Authority Kernel")
        for query in queries:
            details = self.authorize_details(query["operation"], query["target"])
            if details["authorized"]:
                print(f"✅ Authorized: {query['operation']} {query['target']} ({details['capability']})")
            else:
                print(f"ℹ️  Denied: {details['reason']}")
            yield details
