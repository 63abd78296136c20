"""Several hosts on one machine: tiers as network namespaces, real links between them, a Ray node in each.

    from cluster.testbed import Testbed

    with Testbed.up(topology) as testbed:
        ...

Needs Linux, root and iproute2; `missing()` says what this machine lacks.
"""

from cluster.testbed.hosts import Testbed, down, names
from cluster.testbed.namespaces import missing

__all__ = ["Testbed", "down", "missing", "names"]
