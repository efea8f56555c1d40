"""The laboratory: network namespaces, services, injectors, runs."""
