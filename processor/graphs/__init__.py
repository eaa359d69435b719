"""Graphs of typed nodes: what a graph is, how a run of it goes on, and how runs meet messages and guests.

Here: definitions and their checks, the state machine of runs, the engine and pools that drive it, kinds.
Not here: how a message is delivered and committed (`delivery`), and what people ask of runs (`operate`).
`machine` is the one place where a run changes: it knows no clock, no luck, no stream and no guest.
"""
