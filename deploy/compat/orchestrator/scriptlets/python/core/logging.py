"""The logger of steps, by the name that they import it by."""

from processor.recipes.authoring import get_logger

__all__ = ["get_logger"]
