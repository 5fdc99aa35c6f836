"""`python -m pipeline`, which is how torchrun starts the `relabel` command."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
