"""A model of transformers as its own loader sees it: without elements, on the meta device."""

from __future__ import annotations

import importlib
import json
from contextlib import ExitStack
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

INSTALL = 'pip install "transformers>=5"'


def transformers_at_hand() -> Any:
    """The package. Raises ValueError, saying what to install, where it is missing or older than its mappings."""
    try:
        package = importlib.import_module("transformers")
        importlib.import_module("transformers.conversion_mapping")
    except ImportError as error:
        raise ValueError(
            "layout='transformers' of a model that no table of ours has needs the package transformers, 5 or later, "
            f"found none: {error}; install it ({INSTALL})"
        ) from None
    return package


def model_without_elements(model: Any, config_text: str) -> Any:
    """The model that a caller means, made by transformers on the meta device.

    ``model`` is "auto", a model_type, or a config, a model class or a model of transformers. ``config_text`` is the
    checkpoint's config.json, "" where there is none; no code is taken from a checkpoint. Raises ValueError, saying what
    to pass, where the class cannot be told or transformers cannot make it.
    """
    package = transformers_at_hand()
    settings = _settings(config_text)
    model_class: Any
    if isinstance(model, type) and issubclass(model, package.PreTrainedModel):
        model_class = model
        config = _config_of(package, settings, model_class.config_class)
    elif isinstance(model, package.PreTrainedModel):  # fully_shard puts a class of its own before the model's
        model_class = next(one for one in type(model).__mro__ if not issubclass(one, FSDPModule))
        config = model.config
    elif isinstance(model, package.PreTrainedConfig):
        config = model
        model_class = _class_of(package, config, config.architectures or settings.get("architectures"))
    elif isinstance(model, type) and issubclass(model, package.PreTrainedConfig):
        config = _config_of(package, settings, model)
        model_class = _class_of(package, config, settings.get("architectures"))
    elif isinstance(model, str):
        config = _config_of(package, settings, _config_class(package, model, settings))
        model_class = _class_of(package, config, settings.get("architectures"))
    else:
        raise ValueError(
            "model: expected a family, a model_type, or a config, a class or a model of transformers, found "
            f"{type(model).__name__}"
        )
    try:
        with ExitStack() as contexts:
            for context in model_class.get_init_context(torch.float32, False, False, None):
                contexts.enter_context(context)
            return model_class(config)
    except Exception as error:
        raise ValueError(
            f"transformers {package.__version__} cannot make a {model_class.__name__} of that config: "
            f"{type(error).__name__}: {error}; pass model=, a config that it can"
        ) from error


def _settings(config_text: str) -> dict[str, Any]:
    try:
        settings = json.loads(config_text or "{}", object_hook=_special_float)
    except ValueError as error:
        raise ValueError(f"config.json is no JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"config.json: expected an object, found {type(settings).__name__}")
    return settings


def _special_float(entry: dict[str, Any]) -> Any:
    """JSON has no infinity; transformers writes {"__float__": "Infinity"}."""
    value = entry.get("__float__")
    return float(value) if len(entry) == 1 and value in ("Infinity", "-Infinity", "NaN") else entry


def _config_class(package: Any, model: str, settings: dict[str, Any]) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = settings.get("model_type") if model == "auto" else model
    if not isinstance(model_type, str):
        raise ValueError(
            "cannot tell which model this is: config.json names no model_type; pass model=, a config or a model "
            "class of transformers"
        )
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"model_type {model_type!r} is known neither to a table of ours (shardwright families) nor to transformers "
            f"{package.__version__}; pass model=, a config or a model class, or update transformers ({INSTALL})"
        )
    return CONFIG_MAPPING[model_type]


def _config_of(package: Any, settings: dict[str, Any], config_class: Any) -> Any:
    if not settings:
        raise ValueError(
            f"model: there is no config.json beside the weights to make a {config_class.__name__} of; pass model=, "
            "a config of transformers"
        )
    try:
        return config_class.from_dict(_settings_for(config_class, settings))
    except Exception as error:
        raise ValueError(
            f"transformers {package.__version__} cannot make a {config_class.__name__} of config.json: {error}; "
            "pass model=, a config of transformers"
        ) from error


def _settings_for(config_class: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """A part of the model has its settings among those of the whole."""
    if settings.get("model_type") == config_class.model_type:
        return settings
    parts = [part for part in settings.values() if isinstance(part, dict)]
    named = [part for part in parts if part.get("model_type") == config_class.model_type]
    of_base = settings.get(config_class.base_config_key or "")
    return of_base if isinstance(of_base, dict) else named[0] if len(named) == 1 else settings


def _class_of(package: Any, config: Any, architectures: Any) -> Any:
    names = [name for name in architectures or [] if isinstance(name, str)]
    for name in names:
        found = getattr(package, name, None)
        if isinstance(found, type) and issubclass(found, package.PreTrainedModel):
            return found
    told = f"architectures {names} are not transformers' own" if names else "the config has no architectures"
    raise ValueError(
        f"cannot tell which class a checkpoint of model_type {config.model_type} is for: {told}; pass model=, the "
        "class that the state dict is of, such as a ...ForCausalLM"
    )
