"""What torch.distributed.checkpoint calls: planners, readers and writers."""
