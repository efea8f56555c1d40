"""The core that every tool of the LLM SLO eBPF toolkit shares."""

__version__ = "0.1.0"
