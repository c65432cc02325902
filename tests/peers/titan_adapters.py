"""torchtitan's state-dict adapters, without the rest of torchtitan, which wants packages that they do not use."""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


class Anything:
    """Stands in for what adapters name in annotations and ask isinstance() of."""

    class Config:
        pass


def stand_in(name: str, **values: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(values)
    sys.modules[name] = module


def adapter_class(model: str, name: str) -> Any:
    """``name`` of torchtitan.models.<model>.state_dict_adapter."""
    root = Path(find_spec("torchtitan").submodule_search_locations[0])
    for package in ("torchtitan.models", f"torchtitan.models.{model}", "torchtitan.models.common"):
        if package not in sys.modules:
            stand_in(package, __path__=[str(root.parent / package.replace(".", "/"))])
    for package in ("torchtitan.protocols", "torchtitan.models.deepseek_v3"):
        if package not in sys.modules:
            stand_in(package, __path__=[str(root.parent / package.replace(".", "/"))])
    stand_in("torchtitan.tools", __path__=[])
    logger = SimpleNamespace(warning=print)
    stand_in("torchtitan.tools.logging", logger=logger)
    stand_in("torchtitan.protocols.model", BaseModel=Anything)
    stand_in("torchtitan.models.common.rope", ComplexRoPE=Anything, CosSinRoPE=Anything)
    stand_in("torchtitan.models.common.decoder", Decoder=Anything)
    models = ("Llama3Model", "Qwen3Model", "Qwen35Model", "DeepSeekV3Model", "GptOssModel", "KimiK25Model")
    for package in {model, "deepseek_v3"}:
        stand_in(f"torchtitan.models.{package}.model", **dict.fromkeys(models, Anything))
    return getattr(importlib.import_module(f"torchtitan.models.{model}.state_dict_adapter"), name)
