"""The only room that talks to the kernel: ipset over netlink, x_tables over sockopt. The native module is its own, but for one reader."""
