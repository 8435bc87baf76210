"""`python -m opsin` is the command `opsin`: what launchers such as torchrun start."""

import sys

from opsin.cli import main

sys.exit(main())
