"""Authorization and policy: ask before doing, and read in a denial what would allow it."""

from authority_nanos import AuthorityKernel, AuthorityKernelError, OperationDeniedError

with AuthorityKernel() as ak:
    print("✅ Connected to Authority Kernel")

    for operation, target in (
        ("read", "/etc/config.json"),
        ("http.get", "https://api.example.com/v1/status"),
        ("http.post", "https://api.example.com/v1/pay"),
    ):
        details = ak.authorize_details(operation, target)
        if details["authorized"]:
            print(f"✅ Authorized: {operation} {target}")
        else:
            print(f"ℹ️  Denied: {details['reason']}")
            print(details["remedy"])

    try:
        ak.http_post("https://api.example.com/v1/pay", b"{}")
        print("✅ Posted")
    except OperationDeniedError as err:
        print(f"ℹ️  Denied by the policy: {err.code} {err.operation} {err.target}")
    except AuthorityKernelError as err:
        print(f"ℹ️  Not posted: {err}")
