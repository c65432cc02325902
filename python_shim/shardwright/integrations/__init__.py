"""Shardwright in place of what trainers bring: a module for each trainer. None is imported unless it is asked for."""
