"""`SecurityConfig` and `SecureRunnableBuilder`: `processor.library`.

`PROCESSOR_STOCK_URL` names the server that stock helpers ask, for programs that do not say it themselves.
"""

import os
from dataclasses import dataclass, field

from processor.library import SecureRunnableBuilder
from processor.library import SecurityConfig as _SecurityConfig

__all__ = ["SecureRunnableBuilder", "SecurityConfig"]

_STOCK_URL = _SecurityConfig.stock_url


@dataclass(frozen=True)
class SecurityConfig(_SecurityConfig):
    __doc__ = _SecurityConfig.__doc__

    stock_url: str = field(default_factory=lambda: os.environ.get("PROCESSOR_STOCK_URL") or _STOCK_URL)
