# pyarrow ships no types, and builds most of pyarrow.compute at import: everything in it is Any to the type checker.
from typing import Any

def __getattr__(name: str) -> Any: ...
