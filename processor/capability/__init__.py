"""Everything that a guest may ask of its host while it runs, and how the host does it.

Here: the calls, the HTTP client that makes them, and the secrets that go into them.
Not here: what a guest hands over at the end of a run (`delivery`), and its own side of a call (`sandbox`).
Everything in a call is hostile; every answer is bounded in time and bytes.
"""
