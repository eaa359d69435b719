"""Whether these modules are alone: pip lets two packages overwrite each other's files without a word."""

from importlib.metadata import PackageNotFoundError, distribution


def refuse_beside(original: str) -> None:
    """Raise ImportError where the package is installed whose name our module has."""
    try:
        found = distribution(original)
    except PackageNotFoundError:
        return
    raise ImportError(
        f"{original} {found.version} is installed beside processor-compat, and both have its module. Remove "
        f"one: `pip uninstall {original}` and `pip install --force-reinstall processor-compat`, or "
        "`pip uninstall processor-compat`."
    )
