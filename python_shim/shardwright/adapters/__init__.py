"""State dicts in memory, between the trainer's names and shapes and Hugging Face's."""
