"""``python -m matexport`` is ``matexport``."""

from matexport.cli.main import main

raise SystemExit(main())
