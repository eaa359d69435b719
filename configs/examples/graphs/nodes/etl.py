from exospherehost import BaseNode, PruneSignal
from pydantic import BaseModel


class Split(BaseNode):
    class Inputs(BaseModel):
        orders: list

    class Outputs(BaseModel):
        order: dict

    async def execute(self) -> list[Outputs]:
        return [self.Outputs(order=order) for order in self.inputs.orders]


class Convert(BaseNode):
    class Inputs(BaseModel):
        order: dict
        rate: float

    class Outputs(BaseModel):
        id: str
        amount: float

    async def execute(self) -> Outputs:
        order = self.inputs.order
        if order.get("cancelled"):
            raise PruneSignal({"order": order["id"]})  # nothing comes of it, and nothing failed
        if order["amount"] < 0:
            raise ValueError(f"order {order['id']} has the amount {order['amount']}")
        return self.Outputs(id=order["id"], amount=order["amount"] * self.inputs.rate)


class Total(BaseNode):
    class Inputs(BaseModel):
        ids: list
        amounts: list

    class Outputs(BaseModel):
        ids: list
        total: float

    async def execute(self) -> Outputs:
        self.logger.info(f"{self.united['success']} orders, {self.united['errored']} failed")
        return self.Outputs(ids=self.inputs.ids, total=sum(self.inputs.amounts))
