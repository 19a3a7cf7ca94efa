"""Parametrizations whose limit is lazy: networks are linear in their weights, with a fixed kernel."""
