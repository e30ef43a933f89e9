"""``python -m bo_act.cli`` is ``bo-act``."""

from bo_act.cli import main

if __name__ == "__main__":  # workers import this file, too
    main()
