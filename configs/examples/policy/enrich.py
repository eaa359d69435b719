class Runnable:
    """Adds the name of a company to its ticks, for as long as the budget of requests lasts."""

    def process(self, queries):
        for tick in queries:
            name = self.context.get("name")
            if name is None and self.budget("requests")["left"] != 0:
                answer = self.requests.get(f"https://api.example.com/v1/names/{tick['ticker']}")
                if answer.status_code == 200:
                    name = self.context["name"] = answer.json()["name"]
            if tick["price"] > 1000:
                self.emit("alerts.price", tick)
            yield {**tick, "name": name}
