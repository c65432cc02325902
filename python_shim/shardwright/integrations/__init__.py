"""Trainers of others, whose saves and loads one line hands to Shardwright. None is imported unless it is asked for."""
