"""`python -m netemu`."""

from netemu.cli import main

raise SystemExit(main())
