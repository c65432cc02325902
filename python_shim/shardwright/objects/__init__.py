"""Pickled objects of a checkpoint, which are loaded without running code of theirs."""
