"""The life of a message: from its stream, through a guest, into one commit.

Here: what takes, orders, runs, settles, keeps and repeats messages, and what finds and watches their streams.
Not here: how code is confined (`sandbox`), how bytes move (`jetstream`), where contexts lie (`context`), and
what people ask of an app that runs (`operate`). Begin with `worker`, which is the path of every message.
"""
