"""Data that travels inside the wheel: schemas, vocabulary, scenarios, compiled BPF objects (see libslo.resources)."""
