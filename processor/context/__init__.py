"""What a route keeps in the app's stream: positions, contexts, their history, and parked messages.

Here: the subjects of that stream, and the one codec of everything that is stored under them.
Not here: what a value may be (`sandbox.values`), who changes a context, and why (`delivery`, `operate`).
What is written here is read by later builds: a field is never given another meaning.
"""
