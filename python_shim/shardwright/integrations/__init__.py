"""Trainers of others, whose saves and loads one line hands to Shardwright. No module here is imported unless it is asked for."""
