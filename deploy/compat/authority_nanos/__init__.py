"""The Authority Kernel SDK by the name that its programs import: `processor.authority`."""

from _processor_compat import refuse_beside

refuse_beside("authority-nanos")

from processor.authority import *  # noqa: E402, F403
