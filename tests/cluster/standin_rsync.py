#!/usr/bin/env python3
"""What Ray's launcher needs of rsync, for machines without it: a copy over the shell that ``--rsh`` names."""

import shlex
import subprocess
import sys
from pathlib import Path

arguments = sys.argv[1:]
shell = shlex.split(arguments[arguments.index("--rsh") + 1])
source, target = arguments[-2:]
host, _, path = target.partition(":")
if Path(source).is_dir():
    pack = ["tar", "-C", source, "-cf", "-", "."]
    unpack = f"mkdir -p {path} && tar -C {path} -xpf -"
else:
    pack = ["tar", "-C", str(Path(source).parent), "-cf", "-", Path(source).name]
    name = shlex.quote(Path(source).name)
    unpack = f"mkdir -p $(dirname {path}) && cd $(dirname {path}) && tar -xpf - && (test {name} -ef {path} || mv {name} {path})"
packed = subprocess.run(pack, capture_output=True, check=True).stdout
sys.exit(subprocess.run([*shell, host, unpack], input=packed, check=False).returncode)
