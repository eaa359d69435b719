"""Recipes: steps over one context, in Python or as programs, run by hand or on messages.

Here: what a recipe is, the graph that it becomes, its programs, its context, and the run without a broker.
Not here: how an execution is confined (`sandbox`), and how runs go on and are committed (`graphs`).
A step is a node of a graph, and the context is the store of its run: nothing here schedules anything.
"""
