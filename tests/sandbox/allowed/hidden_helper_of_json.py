class Runnable:
    def process(self, queries):
        import datetime

        class Encoder(json.JSONEncoder):
            def default(self, o):
                if isinstance(o, datetime.date):
                    return o.isoformat()
                return super().default(o)

        return [
            json.dumps({"day": datetime.date(2024, 1, 2)}, cls=Encoder), json.dumps({1}, default=list),
            json.loads('{"a": 1.5}', parse_float=str),
        ]
