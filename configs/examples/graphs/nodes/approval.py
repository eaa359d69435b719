from exospherehost import BaseNode, PruneSignal
from pydantic import BaseModel, Field


class Request(BaseNode):
    class Inputs(BaseModel):
        amount: float = Field(gt=0)

    class Outputs(BaseModel):
        amount: float

    async def execute(self) -> Outputs:
        self.event("approval", {"run": self.run_id, "amount": self.inputs.amount})
        return self.Outputs(amount=self.inputs.amount)


class Pay(BaseNode):
    class Inputs(BaseModel):
        amount: float
        approval: dict

    class Outputs(BaseModel):
        paid: float
        by: str

    async def execute(self) -> Outputs:
        if not self.inputs.approval.get("approved"):
            raise PruneSignal({"refused_by": self.inputs.approval.get("by", "nobody")})
        return self.Outputs(paid=self.inputs.amount, by=self.inputs.approval["by"])
