"""`python -m vplib` is the `vplib` command."""

from vplib.runner.cli import main

if __name__ == "__main__":
    main()
