"""The commands of ``splitinfer``, one a module: ``add`` declares its arguments, ``run`` does the work.

Each imports what it needs when it runs, so that ``--help`` loads nothing.
"""

from splitinfer.commands import calibrate, demo, learn, plan, profile, report, run, simulate, testbed, verify

COMMANDS = (demo, learn, profile, calibrate, plan, simulate, run, report, testbed, verify)
"""In the order in which ``--help`` lists them."""
