"""What to write instead of what the dialect refuses, in the words that `processor check` and a load show.

Only words are here: what is refused, and where, is decided by `Transformer` and `verifier`.
"""

from __future__ import annotations

from processor.sandbox.facades import LIBRARIES

_PACKAGE = "Set 'language: python' and 'packages: [{0}]' for this route: the same jail, with plain Python."
_TRAFFIC = "Use requests.get(...) and the like: the host makes the request, to hosts that 'outbound' lists."
_FILES = "A Runnable has no files: take data from messages and keep it in self.context."
_AT_ONCE = "A Runnable does one thing at a time: run several routes or partitions, which work in parallel."
_WAITS = "Calls to the outside wait by themselves: write 'def' without 'async'."
_CODE = "A Runnable cannot look at or make code: write it out, or choose among functions in a dict."
_KEPT = "Keep what must last in self.context; for bytes or text of a document use json, base64 or zlib."

# By the first name of the module; a whole dotted name goes before it.
_INSTEAD_OF_MODULE = {
    "os": "Settings and secrets come from the configuration (self.secrets['name']), data from messages; "
    "for paths as text use posixpath, for random bytes secrets.token_bytes.",
    "os.path": "For paths as text use posixpath: it has join, basename, dirname and splitext.",
    "sys": "Print with print() or logger, end with return or raise Reject('why'); for errors there is "
    "logger.exception.",
    "pathlib": f"{_FILES} For paths as text use posixpath.",
    "subprocess": "A Runnable cannot start programs: what another program does belongs in its own route.",
    "socket": _TRAFFIC,
    "ssl": _TRAFFIC,
    "http": _TRAFFIC,
    "urllib.request": _TRAFFIC,
    "urllib.error": _TRAFFIC,
    "urllib3": _TRAFFIC,
    "aiohttp": _TRAFFIC,
    "ftplib": _TRAFFIC,
    "smtplib": "Publish an output for a mail service, or call the HTTP API of one with requests.",
    "nats": "Return documents: Processor publishes them to the route's output, once.",
    "threading": _AT_ONCE,
    "multiprocessing": _AT_ONCE,
    "concurrent": _AT_ONCE,
    "sched": "To try again later, raise Retry(after_s=30).",
    "signal": "Limits of time are set in the configuration ('limits').",
    "trio": _WAITS,
    "anyio": _WAITS,
    "pickle": _KEPT,
    "marshal": _KEPT,
    "shelve": _KEPT,
    "dbm": _KEPT,
    "sqlite3": _KEPT,
    "gzip": "Use zlib: zlib.compress(data, wbits=31) writes gzip, zlib.decompress(data, wbits=47) reads it.",
    "bz2": "Use zlib.",
    "lzma": "Use zlib.",
    "zipfile": "Use zlib on what messages carry.",
    "tarfile": "Use zlib on what messages carry.",
    "tempfile": _FILES,
    "shutil": _FILES,
    "glob": f"{_FILES} For patterns of names use fnmatch.",
    "fileinput": _FILES,
    "configparser": "Write settings as constants of the source, or send them in messages.",
    "argparse": "Write settings as constants of the source, or send them in messages.",
    "dotenv": "Settings and secrets come from the configuration (self.secrets['name']).",
    "importlib": "Write an import statement.",
    "pkgutil": "Write an import statement.",
    "builtins": "Use the built-in functions by name.",
    "inspect": _CODE,
    "ast": f"{_CODE} For literals as text use json.loads.",
    "dis": _CODE,
    "code": _CODE,
    "gc": "Memory is bounded by 'limits.memory_mb'.",
    "weakref": "Keep the object itself, or its id, in a dict of your own.",
    "ctypes": "A Runnable has no native code of its own.",
    "cffi": "A Runnable has no native code of its own.",
    "locale": "Format with f-strings; '{:,.2f}' groups thousands.",
    "gettext": "Keep the texts in a dict.",
    "platform": "What a Runnable does must not depend on the machine.",
    "getpass": "Secrets come from the configuration (self.secrets['name']).",
    "pdb": "Use logger.info and 'processor try'.",
    "unittest": "Tests are a file of their own; try a route with 'processor try'.",
    "pytest": "Tests are a file of their own; try a route with 'processor try'.",
    "timeit": "Use time.perf_counter.",
    "orchestrator": "It is there for steps of recipes alone: a Runnable has self.context and logger.",
    "xml": "Parse with re, or set 'language: python' for this route.",
    "typing_extensions": "Import the name from typing.",
    "attr": "Use dataclasses.",
    "attrs": "Use dataclasses.",
    "pytz": "Use zoneinfo.ZoneInfo('Europe/Berlin').",
    "yaml": _PACKAGE.format("PyYAML"),
    "sklearn": _PACKAGE.format("scikit-learn"),
    "dateutil": _PACKAGE.format("python-dateutil"),
    "PIL": _PACKAGE.format("pillow"),
    "bs4": _PACKAGE.format("beautifulsoup4"),
    "cv2": _PACKAGE.format("opencv-python-headless"),
    **{
        name: _PACKAGE.format(name)
        for name in (
            "numpy", "pandas", "scipy", "polars", "orjson", "requests_toolbelt", "pyarrow",
            "torch", "tensorflow", "statsmodels", "networkx", "sympy", "shapely", "lxml", "jinja2", "msgpack",
        )
    },
}  # fmt: skip


def rest_of_module(name: str) -> str:
    """What to do for what a module has not got here; empty where nothing is known of it."""
    if name == "exospherehost":
        return " Graphs are made and triggered from outside of a node."
    return " The rest of it is for 'language: python'." if name in LIBRARIES else ""


def instead_of_module(name: str) -> str:
    """What to do where the module cannot be imported; empty where nothing is known of it."""
    return _INSTEAD_OF_MODULE.get(name) or _INSTEAD_OF_MODULE.get(name.partition(".")[0], "")


INSTEAD_OF_NAME = {
    "open": _FILES,
    "input": "Take input from the messages: process() is called with them.",
    "eval": "Write the expression out, use json.loads for data or a dict of functions for choice.",
    "exec": "Write the code out, or choose among functions in a dict.",
    "compile": "Write the code out; for patterns use re.compile.",
    "globals": "Use a dict of your own.",
    "locals": "Use a dict of your own.",
    "breakpoint": "Use logger.info.",
    "exit": "Return, or raise Reject('why').",
    "quit": "Return, or raise Reject('why').",
    "help": "Use logger.info.",
    "__import__": "Write an import statement.",
    "__builtins__": "Use the built-in functions by name.",
    "__file__": "A Runnable has no files.",
    "__spec__": "Use a constant of your own.",
    "__loader__": "Use a constant of your own.",
    "__dict__": "Use a dict of your own.",
    "__class__": "Use type(self).",
    "ExceptionGroup": "Raise one exception, with the others in its arguments.",
    "BaseExceptionGroup": "Raise one exception, with the others in its arguments.",
    "aiter": "Use iter.",
    "anext": "Use next.",
    "copyright": "Use a constant of your own.",
    "credits": "Use a constant of your own.",
    "license": "Use a constant of your own.",
}

INSTEAD_OF_ATTRIBUTE = {
    "__dict__": "Change it with self.__dict__.update(...) or setattr().",
    "__class__": "Make an object of the other class, or keep the state in an attribute.",
    "__mro__": "Ask with isinstance() or issubclass().",
    "__bases__": "Ask with isinstance() or issubclass().",
    "__base__": "Ask with isinstance() or issubclass().",
    "__subclasses__": "Keep a list of your classes, filled in __init_subclass__.",
    "__traceback__": "Use logger.exception('what happened') or traceback.format_exc().",
    "__globals__": "Use a dict of your own.",
    "__code__": "Call the function.",
    "__closure__": "Call the function.",
    "__defaults__": "Keep the values in a dict of your own.",
    "__wrapped__": "Keep a reference to the function.",
    "__self__": "Keep a reference to the object.",
    "__func__": "Keep a reference to the function.",
    "__getattribute__": "Use getattr().",
    "__getattr__": "Use getattr().",
    "__get__": "Read the attribute.",
    "__set__": "Set the attribute, or use setattr().",
    "__reduce__": "Use copy.copy, copy.deepcopy or json.",
    "__reduce_ex__": "Use copy.copy, copy.deepcopy or json.",
    "__sizeof__": "Use len().",
}

INSTEAD_OF_DEFINING = {
    "__del__": "Use a with statement.",
    "__getattribute__": "Use __getattr__, a dict, or properties.",
    "__class__": "Use inheritance.",
    "__reduce__": "Use __copy__ or __deepcopy__; the context keeps plain data.",
    "__reduce_ex__": "Use __copy__ or __deepcopy__; the context keeps plain data.",
    "__getstate__": "Use __copy__ or __deepcopy__; the context keeps plain data.",
    "__setstate__": "Use __copy__ or __deepcopy__; the context keeps plain data.",
    "__instancecheck__": "Derive from the class, or write a Protocol.",
    "__subclasscheck__": "Derive from the class, or write a Protocol.",
    "__subclasshook__": "Derive from the class, or write a Protocol.",
    "__dir__": "Leave it out.",
    "__prepare__": "Use __init_subclass__ or a class decorator.",
    "__mro_entries__": "Name the base classes.",
    "__getattr__": "A Runnable is no module: define it in a class.",
    "__await__": "Calls to the outside wait by themselves.",
    "__aenter__": "Use __enter__.",
    "__aexit__": "Use __exit__.",
    "__aiter__": "Use __iter__.",
    "__anext__": "Use __next__.",
}

INSTEAD_OF_NODE = {
    "TryStar": ("'except*'", "Write 'except': there are no groups of exceptions here."),
}
