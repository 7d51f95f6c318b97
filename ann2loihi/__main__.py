"""``python -m ann2loihi`` and the console script."""

from toolchain.app.cli import main

if __name__ == "__main__":
    main()
