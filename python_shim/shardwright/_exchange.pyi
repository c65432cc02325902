# The compiled module that needs torch; its functions are documented in python_shim/bindings/exchange/module.cpp.
from typing import Any

def __getattr__(name: str) -> Any: ...
