"""The address under which `processor.library` was published first; both are the same."""

from __future__ import annotations

from processor.library import (
    Emitted,
    RunFailed,
    SecureRunnable,
    SecureRunnableBuilder,
    SecurityConfig,
)

__all__ = ["Emitted", "RunFailed", "SecureRunnable", "SecureRunnableBuilder", "SecurityConfig"]
