"""cluster -> ruleset, for one node: the only part of `netpol.rules` that knows what policies are.

node        the wanted state of a node, kept up to date by events
live        the sets that its chains refer to, and the members that events touched
front       addresses -> the set in front of a dispatch tree
classes     policies of a class of pods -> its chain
selections  what a set selects, its name and its members
prefixes    ipBlocks -> the shortest match and nomatch prefixes
tree        addresses -> dispatch chains
skeleton    the chains that are always there, and the settings
"""

from netpol.rules.compile.node import NodeState, compiled
from netpol.rules.compile.skeleton import Settings

__all__ = ["NodeState", "Settings", "compiled"]
