"""The loop of a node: events in, kernel made so, and looked after."""
