"""Basic heap operations: allocate, read, write by JSON Patch (RFC 6902), delete."""

import json

from authority_nanos import AuthorityKernel

with AuthorityKernel() as ak:
    print("✅ Connected to Authority Kernel")

    handle = ak.alloc("counter", json.dumps({"value": 0, "name": "counter"}).encode())
    print(f"✅ Allocated counter with handle: {handle}")
    print(f"✅ Read counter: {json.loads(ak.read(handle))}")

    patch = [{"op": "replace", "path": "/value", "value": 42}]
    version = ak.write(handle, json.dumps(patch).encode())
    print(f"✅ Updated counter to version: {version}")
    print(f"✅ Updated counter: {json.loads(ak.read(handle))}")

    ak.delete(handle)
    print("✅ Deleted counter handle")
