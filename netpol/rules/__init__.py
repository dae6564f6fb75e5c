"""What the kernel should hold: values, cluster -> ruleset, (wanted, found) -> steps, packet x ruleset -> verdict. Pure."""
