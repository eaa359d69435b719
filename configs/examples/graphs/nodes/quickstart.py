"""The nodes of the quick start of ExosphereHost's SDK, as its README has them."""

from exospherehost import BaseNode, Runtime
from pydantic import BaseModel


class SampleNode(BaseNode):
    class Inputs(BaseModel):
        name: str
        data: str

    class Outputs(BaseModel):
        message: str
        processed_data: str

    async def execute(self) -> Outputs:
        print(f"Processing data for: {self.inputs.name}")
        processed_data = f"completed:{self.inputs.data}"
        return self.Outputs(message="success", processed_data=processed_data)


class ConfigurableNode(BaseNode):
    class Inputs(BaseModel):
        text: str
        max_length: str = "100"

    class Outputs(BaseModel):
        result: str
        length: str

    async def execute(self) -> Outputs:
        max_length = int(self.inputs.max_length)
        result = self.inputs.text[:max_length]
        return self.Outputs(result=result, length=str(len(result)))


Runtime(namespace="MyProject", name="DataProcessor", nodes=[SampleNode, ConfigurableNode]).start()
