"""Engines: how a balancing method is run over the micro-batches of a step."""
