"""Prices: what an event without a cost costs by a list, exactly. May import the other modules of the events."""
