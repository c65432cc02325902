"""Object stores, the Hugging Face Hub and whatever fsspec opens: what lies at an address, and how its bytes move."""
