"""A folder of modules in the configuration: its files, the names that they get, and what is wrong with it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from processor.config import Config, fingerprint, load, read_modules
from processor.errors import Faults
from processor.model import Module, Program

APP = """\
app: market
modules: lib/
routes:
  one:
    input: a
    code: "class Runnable: pass"
  two:
    input: b
    modules: shop
    code: "class Runnable: pass"
"""


def write(folder: Path, **files: str | bytes) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else dedent(content).encode())


def read(folder: Path, text: str = APP) -> Config:
    (folder / "app.yaml").write_text(text)
    return load(folder / "app.yaml", {})


def faults_of(folder: Path, text: str = APP) -> list[str]:
    with pytest.raises(Faults) as caught:
        read(folder, text)
    return [str(fault).removeprefix(f"{folder}/") for fault in caught.value.faults]


def names(config: Config, route: str) -> list[str]:
    return [module.name for module in config.routes[route].program.modules]


def test_the_files_of_a_folder_are_modules_of_its_package(tmp_path: Path) -> None:
    """Named by their path, with the route's own folder in place of the app's; caches are left out."""
    files: dict[str, Any] = {
        "lib/__init__.py": "a = 1",
        "lib/fees.py": b"\xef\xbb\xbfb = 2", "lib/deep/er/x.py": "", "lib/no.txt": "",
        "lib/__pycache__/y.py": "(", "lib/.git/z.py": "(", "lib/.#fees.py": "(", "shop/fees.py": "c = 3",
    }  # fmt: skip
    write(tmp_path, **files)
    config = read(tmp_path)
    assert names(config, "one") == ["lib", "lib.deep.er.x", "lib.fees"]
    assert config.routes["one"].program.modules[2] == Module(
        "lib.fees", str(tmp_path / "lib/fees.py"), "b = 2"
    )
    assert names(config, "two") == ["shop.fees"]
    watched = {str(path.relative_to(tmp_path)) for path in config.files}
    assert watched == {
        "app.yaml", "lib", "lib/__init__.py", "lib/fees.py", "lib/deep/er/x.py", "shop", "shop/fees.py",
    }  # fmt: skip
    assert config.routes["one"].program.module_names >= {"lib", "lib.deep", "lib.deep.er"}


def test_files_are_named_as_the_configuration_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is relative stays so in faults and tracebacks, as that of a Runnable does."""
    write(tmp_path, **{"lib/deep/fees.py": "", "shop/x.py": "", "app.yaml": APP})
    monkeypatch.chdir(tmp_path)
    routes = load("app.yaml", {}).routes
    assert [module.filename for module in routes["one"].program.modules] == ["lib/deep/fees.py"]
    assert read_modules("./lib/")[0] == routes["one"].program.modules


def test_the_id_of_a_program_says_what_its_modules_hold() -> None:
    """Their names and sources, and neither order nor file; without modules it is what it always was."""
    source = "class Runnable: ..."
    plain = Program(source, "a.py")
    assert plain.id == hashlib.sha256(source.encode()).hexdigest()[:12]
    a, b = Module("lib.a", "lib/a.py", "x = 1"), Module("lib.b", "lib/b.py", "y = 1")

    def named(*modules: Module) -> str:
        return Program(source, "a.py", modules=modules).id

    assert named(a, b) == named(b, a) == named(a._replace(filename="elsewhere.py"), b)
    different = [named(), named(a), named(a, b), named(a._replace(source="x = 2"), b)]
    different += [
        named(a._replace(name="lib.c"), b),
        named(a._replace(name="lib.b"), b._replace(name="lib.a")),
    ]
    assert len(set(different)) == len(different)


def test_a_changed_module_is_another_version_of_the_configuration(tmp_path: Path) -> None:
    """And of the routes that may import it; where the folder is does not matter."""
    write(tmp_path, **{"lib/fees.py": "a = 1", "shop/fees.py": "a = 1"})
    first = read(tmp_path)
    write(tmp_path, **{"lib/fees.py": "a = 2"})
    second = read(tmp_path)
    assert fingerprint(first) != fingerprint(second)
    assert first.routes["one"].program.id != second.routes["one"].program.id
    assert first.routes["two"].program.id == second.routes["two"].program.id
    write(tmp_path, **{"moved/lib/fees.py": "a = 2"})
    assert fingerprint(read(tmp_path, APP.replace("modules: lib/", "modules: moved/lib"))) == fingerprint(
        second
    )


def test_names_that_cannot_be_imported_are_refused_at_the_key(tmp_path: Path) -> None:
    """What Python or the route has already, what is no name, and one name for two files."""
    shop = ("a-b", "class", "x", "x/__init__", "__main__", "d.e/f")
    write(tmp_path, **{"json/own.py": ""}, **{f"shop/{name}.py": "" for name in shop})
    top, *below = faults_of(tmp_path, APP.replace("modules: lib/", "modules: json"))
    assert top == (
        "app.yaml:2:1 E114 modules: 'json' is the name of a module that is there already."
        " Rename the folder, which its modules are imported by."
    )
    here = f"app.yaml:9:5 E114 routes.two.modules: {tmp_path}/shop"
    misnamed = {"__main__.py": "__main__", "a-b.py": "a-b", "class.py": "class", "d.e/f.py": "d.e"}
    assert set(below) == {
        *(
            f"{here}/{file} cannot be imported: {part!r} is not a name to import. Rename it."
            for file, part in misnamed.items()
        ),
        f"{here}/x.py and {tmp_path}/shop/x/__init__.py are both imported as shop.x. Rename one.",
    }


def test_a_folder_named_as_a_package_of_the_route_is_refused(tmp_path: Path) -> None:
    """By what the package and its requirements are imported as; another route may have it."""
    write(tmp_path, **{"lib/a.py": "", "yaml/a.py": ""})
    text = APP.replace("modules: shop", "modules: yaml\n    language: python\n    packages: [PyYAML]")
    [fault] = faults_of(tmp_path, text)
    assert fault.startswith("app.yaml:9:5 E114 routes.two.modules: ")
    assert "'yaml' is the name of a package of this route. Rename the folder" in fault
    read(tmp_path, APP.replace("modules: shop", "modules: yaml"))


def test_what_cannot_be_read_is_told_with_its_file(tmp_path: Path) -> None:
    """A folder that is missing or has no module, and a file that is no text."""
    write(tmp_path, **{"shop/a.py": b"\xff", "shop/b.py": ""})
    assert faults_of(tmp_path) == [
        f"app.yaml:2:1 E107 modules: {tmp_path}/lib cannot be read: No such file or directory",
        f"app.yaml:9:5 E107 routes.two.modules: {tmp_path}/shop/a.py is not UTF-8 text",
    ]
    write(tmp_path, **{"lib/no.txt": "", "shop/a.py": ""})
    assert faults_of(tmp_path) == [f"app.yaml:2:1 E107 modules: {tmp_path}/lib holds no file *.py"]


def test_modules_are_at_most_256_files_of_1_mib(tmp_path: Path) -> None:
    """All that one route may import; exactly as many are fine."""
    write(tmp_path, **{f"lib/m{n}.py": "" for n in range(256)}, **{"shop/a.py": "#" * (1 << 20)})
    assert len(names(read(tmp_path), "one")) == 256
    write(tmp_path, **{"lib/one_more.py": "", "shop/b.py": "#"})
    assert [fault.partition(": ")[2] for fault in faults_of(tmp_path)] == [
        f"{tmp_path}/lib holds 257 files *.py, more than 256",
        f"{tmp_path}/shop holds more than 1048576 bytes of *.py files",
    ]
