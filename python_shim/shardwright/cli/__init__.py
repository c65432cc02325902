"""The command `shardwright`."""
