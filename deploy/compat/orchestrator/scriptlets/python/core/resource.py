"""The decorator that says what a call takes, by the name that they import it by."""

from processor.recipes.authoring import track_resources

__all__ = ["track_resources"]
