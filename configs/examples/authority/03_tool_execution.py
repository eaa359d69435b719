"""Tools: programs that are called by name, with JSON in and JSON out."""

import json

from authority_nanos import AuthorityKernel, AuthorityKernelError, NotFoundError, OperationDeniedError


def call(ak, name, **arguments):
    """What a tool returns, in Python's own types."""
    return json.loads(ak.tool_call(name, json.dumps(arguments).encode()))


with AuthorityKernel() as ak:
    print("✅ Connected to Authority Kernel")

    for name, arguments in (
        ("add", {"a": 5, "b": 3}),
        ("concat", {"str1": "Hello, ", "str2": "World!"}),
        ("echo", {"message": [1, {"two": None}]}),
    ):
        try:
            print(f"✅ {name}: {call(ak, name, **arguments)}")
        except OperationDeniedError as err:
            print(f"ℹ️  {name}: denied by the policy: {err.code}")

    try:
        call(ak, "my_custom_tool", x=1)
    except NotFoundError as err:
        print(f"ℹ️  {err}")
    except AuthorityKernelError as err:
        print(f"ℹ️  my_custom_tool: {err.code}")
