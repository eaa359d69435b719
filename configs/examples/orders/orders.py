"""Clean the orders of one customer, and add the customer's name and tier."""

from datetime import datetime
from decimal import Decimal, InvalidOperation

from processor.runnable import BaseSecureRunnable, Reject

CURRENCIES = {"€": "EUR", "$": "USD", "£": "GBP"}


class Runnable(BaseSecureRunnable):
    def init(self):
        self.context["profile"] = {"name": None, "tier": "unknown"}

    def process(self, queries):
        for query, message in zip(queries, self.messages, strict=True):
            if message.subject == "shop.customers":
                self.context["profile"] = {"name": query["name"].strip(), "tier": query.get("tier", "basic")}
            else:
                yield {**clean(query), **self.context["profile"]}


def clean(order):
    """The order with a number, a currency and a time; a Reject that says what cannot be read."""
    amount, currency = money(order["amount"], order.get("currency"))
    return {
        "order": str(order["order"]),
        "customer": order["customer"],
        "amount": amount,
        "currency": currency,
        "at": datetime.fromisoformat(order["at"]),
    }


def money(amount, currency):
    text = str(amount).strip()
    for sign, name in CURRENCIES.items():
        if sign in text:
            text, currency = text.replace(sign, "").strip(), name
    if "," in text and "." not in text:
        text = text.replace(",", ".")
    try:
        value = Decimal(text.replace(",", "")).quantize(Decimal("0.01"))
    except InvalidOperation:
        raise Reject(f"amount {amount!r} is not a number") from None
    if currency is None:
        raise Reject(f"amount {amount!r} has no currency")
    return value, currency.upper()
