"""The only room that talks to the kernel, and the only user of the native module: ipset over netlink, x_tables over sockopt."""
