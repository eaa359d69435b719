from exospherehost import BaseNode
from pydantic import BaseModel


class Questions(BaseNode):
    class Inputs(BaseModel):
        questions: list

    class Outputs(BaseModel):
        question: str

    async def execute(self) -> list[Outputs]:
        return [self.Outputs(question=question) for question in self.inputs.questions]


class Report(BaseNode):
    class Inputs(BaseModel):
        questions: list
        answers: list

    class Outputs(BaseModel):
        text: str

    async def execute(self) -> Outputs:
        parts = [f"{q}\n{a}" for q, a in zip(self.inputs.questions, self.inputs.answers)]
        if self.united["errored"]:
            parts.append(f"{self.united['errored']} questions had no answer.")
        return self.Outputs(text="\n\n".join(parts))
