"""What people and programs ask of an app: how it does, and that it pause, read again, send back or edit.

Here: status, control, dead letters, edits of contexts, and the requests over NATS that offer all of them.
Not here: how an answer is shown (`cli`), and anything that a message needs on its way (`delivery`).
The command line and the requests over NATS call the same functions, so that both do and say the same.
"""
