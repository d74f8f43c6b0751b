"""``python -m rlplatform`` is ``rlplatform``, with the interpreter that you name."""

from rlplatform.cli import main

if __name__ == "__main__":
    main()
