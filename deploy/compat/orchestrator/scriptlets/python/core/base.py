"""What steps derive from, by the name that they import it by."""

from processor.recipes.authoring import BaseScriptlet

__all__ = ["BaseScriptlet"]
