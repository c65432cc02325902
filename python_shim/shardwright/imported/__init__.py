"""Weight maps made of what another package says of its models, where no table of ours has the family."""
