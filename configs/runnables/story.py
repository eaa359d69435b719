"""Tell, word by word, of a month in which a price moved by a fifth or more."""


class Runnable:
    def process_stream(self, tick):
        symbol, price = tick["symbol"], tick["price"]
        before = self.context.get("price")
        self.context["price"] = price
        if before is None or abs(price / before - 1) < 0.2:
            return
        verb = "rose" if price > before else "fell"
        change = abs(price / before - 1)
        for word in f"{tick['date']}: {symbol} {verb} by {change:.0%} to {price}".split():
            yield word + " "
