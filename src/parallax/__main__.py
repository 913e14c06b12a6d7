"""``python -m parallax``: the command line."""

from parallax.cli import main

if __name__ == "__main__":
    main()
