"""Audit logging: what was done is in a chain of entries that shows where one was changed or removed."""

import json

from authority_nanos import AuthorityKernel, BudgetExceededError

with AuthorityKernel() as ak:
    print("✅ Connected to Authority Kernel")

    handle = ak.alloc("audit_test", json.dumps({"value": 100}).encode())
    ak.read(handle)
    ak.delete(handle)
    ak.audit_log("custom_event", {"action": "example_action", "user": "demo_user"})

    logs = [json.loads(line) for line in ak.audit_logs()]
    print(f"✅ Retrieved {len(logs)} audit log entries")
    for entry in logs:
        print(f"   {entry['n']}: {entry['e']} {entry['op']} {entry['on']} {entry['d']}")

    found = ak.audit_query(json.dumps({"event_type": "alloc", "limit": 10}).encode())
    print(f"✅ Audit query returned {len(found)} entry for alloc")
    print(f"✅ Hash chain verified: {ak.audit_verify()}")

    ak.set_budget("memory", 2_000)  # bytes of objects
    try:
        for number in range(1000):
            ak.alloc(f"obj_{number}", b"data")
    except BudgetExceededError:
        print("✅ Budget exceeded - operation denied")
    last = json.loads(ak.audit_logs()[-1])
    print(f"   {last['e']} {last['op']} {last['d']} {last['code']}")
