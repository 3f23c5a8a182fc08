"""A process that drains spools: the forwarder, its pace, its status server and its metrics.

Started by `transport-kit forward`; an app imports none of it.
"""
