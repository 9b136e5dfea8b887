from typing import Any

_Element = Any

def __getattr__(name: str) -> Any: ...
