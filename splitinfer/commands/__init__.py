"""The commands of ``splitinfer``, one a module: ``add`` declares its arguments, ``run`` does the work.

Each imports what it needs when it runs, so that ``--help`` loads nothing.
"""

from splitinfer.commands import calibrate, cluster, demo, learn, plan, profile, report, run, simulate, testbed, verify

COMMANDS = (demo, learn, profile, calibrate, plan, simulate, run, report, cluster, testbed, verify)
"""In the order in which ``--help`` lists them."""
