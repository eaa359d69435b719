"""Of ismcore.compiler only `secure_runnable`."""
