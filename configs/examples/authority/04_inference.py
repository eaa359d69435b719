"""Inference: models that are asked under a policy and within a budget of tokens, whole and as they come."""

import json

from authority_nanos import AuthorityKernel, AuthorityKernelError, BudgetExceededError, OperationDeniedError


def request(model, prompt, max_tokens):
    messages = [{"role": "user", "content": prompt}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": max_tokens}).encode()


with AuthorityKernel() as ak:
    print("✅ Connected to Authority Kernel")
    ak.set_budget("tokens", 120)

    try:
        answer = json.loads(ak.inference(request("gpt-4o", "the price rose", 16)))
        print(f"✅ gpt-4o answered with {answer['usage']['completion_tokens']} tokens")
        pieces = list(ak.inference_stream(request("gpt-4o", "the price fell", 16)))
        print(f"✅ gpt-4o answered piece by piece: {len(pieces) > 1}")
    except AuthorityKernelError as err:
        print(f"ℹ️  gpt-4o: {err.code}")

    try:
        ak.inference(request("claude-3", "the price rose", 16))
    except OperationDeniedError as err:
        print(f"✅ claude-3 is denied: {err}")

    try:
        for _ in range(10):
            ak.inference(request("gpt-4o", "the price rose", 16))
    except BudgetExceededError as err:
        print(f"✅ Budget exceeded - the model was not asked: {err.code}")
    except AuthorityKernelError as err:
        print(f"ℹ️  gpt-4o: {err.code}")
