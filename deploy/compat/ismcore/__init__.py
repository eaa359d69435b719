"""Of ismcore only `compiler.secure_runnable`, answered by Processor."""

from _processor_compat import refuse_beside

refuse_beside("ismcore")
