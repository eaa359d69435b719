import json
from datetime import timedelta

import httpx
from exospherehost import BaseNode, ReQueueAfterSignal
from pydantic import BaseModel

STOCK = {"pens": 1200, "paper": 35}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "stock_of",
            "description": "How many of an article there are.",
            "parameters": {
                "type": "object",
                "properties": {"article": {"type": "string"}},
                "required": ["article"],
            },
        },
    }
]


class Ask(BaseNode):
    class Inputs(BaseModel):
        question: str
        messages: list = []

    class Outputs(BaseModel):
        question: str
        answer: str

    class Secrets(BaseModel):
        llm_key: str
        llm_url: str
        llm_model: str

    async def execute(self) -> Outputs:
        messages = self.inputs.messages or [{"role": "user", "content": self.inputs.question}]
        async with httpx.AsyncClient(base_url=self.secrets.llm_url, timeout=60) as client:
            response = await client.post(
                "/v1/chat/completions",
                headers={"Authorization": f"Bearer {self.secrets.llm_key}"},
                json={"model": self.secrets.llm_model, "messages": messages, "tools": TOOLS},
            )
        response.raise_for_status()  # 429 and 5xx: the next try waits as `retry` says
        said = response.json()["choices"][0]["message"]
        calls = said.get("tool_calls") or []
        if not calls:
            return self.Outputs(question=self.inputs.question, answer=said["content"])
        # The loop of an agent: what was said so far is committed, and the next turn is a run of its own.
        messages = [*messages, said]
        for call in calls:
            article = json.loads(call["function"]["arguments"])["article"]
            content = json.dumps({"stock": STOCK.get(article, 0)})
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})
        raise ReQueueAfterSignal(
            timedelta(milliseconds=1), {"question": self.inputs.question, "messages": messages}
        )
