"""A private world to try policies in: a routed node with hosts on cables, real sockets, real packets.

    with Lab((Host("web", (parse_address("10.0.0.1"),), ((TCP, 80),)), Host("client", (parse_address("10.0.0.2"),)))) as lab:
        with lab.entered():
            ...  # program the kernel of the node
        answers = lab.probe([Probe("client", parse_address("10.0.0.1"), TCP, 80)])

Made of namespaces that are descriptors and have no names: it is gone when the process is, however that ended. No program is
started, but for the user's own shell in `Lab.shell`. Without root, `become_private` comes first, before any thread exists.
"""

from netpol.lab.values import NODE, Answer, Host, Outcome, Probe
from netpol.lab.world import Lab, become_private

__all__ = ["NODE", "Answer", "Host", "Lab", "Outcome", "Probe", "become_private"]
