"""A private world of network namespaces with listeners and probes: for the demo, the packet tests, the packet benchmarks."""
