"""The command ``bluesky-denoise``, or ``python -m bluesky_denoise``."""

import signal

__all__ = ["main"]


def main() -> None:
    """Run the program; while it is imported, Ctrl-C ends it without a traceback."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:  # and not ignored, as in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from bluesky_denoise.cli import main as run

    if usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
