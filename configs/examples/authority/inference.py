"""Ask a model, and hand its answer on as it comes."""


class Runnable(BaseSecureRunnable):
    def process_stream(self, query):
        try:
            answer = self.infer(query["model"], prompt=query["prompt"], max_tokens=16, stream=True)
            for piece in answer:
                yield piece
            yield {"tokens": answer.usage["completion_tokens"]}
        except AuthorityKernelError as err:
            yield {"refused": err.code}
