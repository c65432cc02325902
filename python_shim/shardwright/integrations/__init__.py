"""Trainers and libraries of others, whose saves and loads one line hands to Shardwright."""
