"""Runs the command of this package."""

import sys

from rdo_harness.gpu.command import main

sys.exit(main())
