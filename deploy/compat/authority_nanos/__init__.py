"""The Authority Kernel SDK by the name that its programs import: `processor.authority`."""

from processor.authority import *  # noqa: F403
