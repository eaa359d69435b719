"""The Context that steps share, by the name that they import it by."""

from processor.recipes.context import RecipeContext as Context

__all__ = ["Context"]
