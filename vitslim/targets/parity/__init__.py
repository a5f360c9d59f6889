"""Whether what was exported computes what its model computes."""
