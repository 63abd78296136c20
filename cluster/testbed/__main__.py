"""``python -m cluster.testbed NAMESPACE DEVICE DEVICE PAGE``: the process of one relayed link (relay.py)."""

import sys

from cluster.testbed.relay import main

main(*sys.argv[1:])
