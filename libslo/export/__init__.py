"""Delivery: OTLP/HTTP, files, webhooks."""
