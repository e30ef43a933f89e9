"""``python -m bo_act.cli`` is ``bo-act``."""

from bo_act.cli import main

main()
