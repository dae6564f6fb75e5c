"""What `netpol demo` is made of.

scene    a cluster -> the world to build and the flows to try in it
outside  ipBlocks -> addresses of no pod that are worth trying
run      a scene in a lab: before, programming, after
trace    which rule decided a flow, and for which policy
words    policies in words
tables   everything on a terminal, or as JSON
"""
