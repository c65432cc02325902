"""What ranks of a job tell each other beside plans, and what becomes of it when one ends."""
