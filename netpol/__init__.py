"""netpol: Kubernetes NetworkPolicy on a node, with ipset and legacy iptables, straight to the kernel."""

import sys

if not sys.platform.startswith("linux"):
    raise ImportError("netpol runs on Linux only: it programs the Linux kernel's ipset and x_tables.")

__version__ = "0.1.0"
