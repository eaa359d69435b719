"""`self.audit(name, data)`: what a Runnable itself has to say in the audit of its route.

An entry is committed with the run, or kept as dropped where the run leaves nothing else behind. It is the
Runnable's word and nobody checks it; its actor is the program.
"""

from __future__ import annotations

from processor.audit import AuditEntry
from processor.capability.arguments import Anything, Argument, Text
from processor.capability.connections import Connections
from processor.capability.row import Arguments, Capability
from processor.errors import About, ProcessorError
from processor.sandbox import documents

NAME_CHARS = 256
DATA_BYTES = 4096


async def _note(connections: Connections, arguments: Arguments) -> bool:
    """Whether it is kept: False where the route has no audit. Raises ProcessorError E338 for too much."""
    name, data = arguments["name"], arguments["data"]
    size = len(documents.dumps(data))
    if size > DATA_BYTES:
        what = f"the data has {size:,} bytes of JSON; an entry takes {DATA_BYTES:,}"
        raise ProcessorError("E338", what, place="audit", about=About("audit", name))
    return connections.remark(AuditEntry("user", operation="note", target=name, details={"data": data}))


AUDIT = Capability(
    "audit",
    (Argument("name", Text(1, NAME_CHARS)), Argument("data", Anything(), required=False)),
    perform=_note,
    ask=lambda arguments: None,  # it does nothing but say so
    event="user",
    cost=lambda arguments: {},
    is_outside=False,
    is_request=False,
    is_method=False,
)
