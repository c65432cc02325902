"""LoRA adapters as peft stores them, and a trainer's."""
