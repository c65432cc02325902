"""State dicts in memory, between the trainer's names and shapes and Hugging Face's."""

from shardwright.adapters.family import FamilyStateDictAdapter as StateDictAdapter

__all__ = ["StateDictAdapter"]
