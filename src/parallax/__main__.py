"""``python -m parallax``: the command line; or a program, with our session class in the place of ONNX Runtime's."""

import sys

if __name__ == "__main__":
    from parallax.cli._program import is_program, run_program

    if is_program(sys.argv[1:]):
        run_program(sys.argv[1:])
    else:
        from parallax.cli import main

        main()
