"""The load generator: plans of requests, the driver that sends them, and the summary of what they saw."""
