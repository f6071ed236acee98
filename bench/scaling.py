#!/usr/bin/env python3
"""What services cost, ipvs mode against iptables mode: `netemu bench` as a script.

usage: bench/scaling.py [--json FILE] ...     (options: --help)
"""

import argparse
import sys

from netemu import scaling

parser = argparse.ArgumentParser(description=scaling.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
scaling.configure(parser)
sys.exit(scaling.run(parser.parse_args()))
