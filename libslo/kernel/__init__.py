"""The kernel edge: BPF objects, ring buffers, process identity, the loss account."""
