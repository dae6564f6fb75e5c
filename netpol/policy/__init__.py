"""What the API objects mean: wire form -> model, indexed state, the specification itself. Pure: no I/O, no clock, no log."""
