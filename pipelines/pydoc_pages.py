"""Renders pydoc's HTML page of modules, each in a process of its own: `python -m pipelines.pydoc_pages FOLDER < NAMES`.

Importing a module may print, hang, crash or change other modules, so that every page is made by a fresh fork with a
time limit, nothing on its standard streams, and a small environment: pages depend on the module and nothing else.
Only the standard library is imported here, for the same reason.
"""

import importlib
import os
import pydoc
import re
import signal
import sys
import sysconfig
from pathlib import Path
from typing import Any

LIMIT_S = 20  # no module that is worth a page takes a tenth of it
PLAIN = (str, bytes, int, float, complex, type(None))
ADDRESS = re.compile(r"\b(at(?: |&nbsp;)|handle )(?:0x)?[0-9a-fA-F]{6,}")


def scrubbed(html: str) -> str:
    """Take memory addresses and absolute paths of this machine out of a page."""
    paths = sysconfig.get_paths()
    names = {paths["purelib"]: "site-packages:", paths["platlib"]: "site-packages:", paths["stdlib"]: "stdlib:",
             sys.prefix: "prefix:", sys.base_prefix: "prefix:", os.environ.get("PYTHONPATH", ""): "loam:",
             os.getcwd(): "."}  # fmt: skip
    for path in sorted(filter(None, names), key=len, reverse=True):
        html = html.replace(path, names[path])
    return ADDRESS.sub(r"\g<1>0x0", html)


class SteadyDoc(pydoc.HTMLDoc):
    """pydoc's page without what differs between processes: values with an order or an address of their own."""

    def docother(self, object: Any, name: str | None = None, mod: str | None = None, *ignored: Any) -> str:
        """A datum: its value when that is plain, else its type."""
        value = self.repr(object) if isinstance(object, PLAIN) else f"<em>{self.escape(type(object).__name__)}</em>"
        return f"<strong>{name}</strong> = {value}" if name else value


def page(name: str) -> str:
    """The HTML page of a module.

    Raises:
        Exception: whatever importing the module raises.
    """
    module, doc = importlib.import_module(name), SteadyDoc()
    return scrubbed(doc.page(pydoc.describe(module), doc.document(module, name)))


def render(name: str, folder: Path, limit_s: int = LIMIT_S) -> bool:
    """Write `<folder>/<name>.html`, or `<name>.failed` when the module has no page; say which."""
    if (process := os.fork()) == 0:
        code = 1
        try:
            signal.alarm(limit_s)  # the default action ends the process, even inside C code
            _mute()
            temporary = folder / f".{name}.{os.getpid()}.tmp"
            temporary.write_bytes(page(name).encode("utf-8", "replace"))
            temporary.replace(folder / f"{name}.html")
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    if status:
        (folder / f"{name}.failed").write_text(str(status))
    return not status


def _mute() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)


def render_all(names: list[str], folder: Path) -> None:
    """Render modules one after the other, for as long as the process that asked for them lives."""
    parent = os.getppid()
    for name in names:
        if os.getppid() != parent:
            break  # killed: its successor begins where we stop
        render(name, folder)


if __name__ == "__main__":
    render_all(sys.stdin.read().split(), Path(sys.argv[1]))
