"""Call tools by name: they are WebAssembly modules here, built from the sources beside them."""


class Runnable(BaseSecureRunnable):
    def process(self, queries):
        for query in queries:
            try:
                yield {"tool": query["tool"], "made": self.tools.call(query["tool"], **query["with"])}
            except AuthorityKernelError as err:
                yield {"tool": query["tool"], "refused": err.code, "why": str(err)}
