"""What belongs to one model family, under the names that its users know."""
