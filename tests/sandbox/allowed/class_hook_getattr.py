class Runnable:
    def process(self, queries):
        class Proxy:
            def __init__(self, data):
                self._data = data

            def __getitem__(self, key):
                return self._data[key]

            def __contains__(self, key):
                return key in self._data

            def __len__(self):
                return len(self._data)

            def __iter__(self):
                return iter(self._data)

            def __call__(self, *args, **kwargs):
                return args, kwargs

        proxy = Proxy({"a": 1})
        return [proxy["a"], "a" in proxy, len(proxy), list(proxy), proxy(1, b=2)]
