"""Entry of the command `lookback` and of `python -m lookback`; light, so that Ctrl-C works."""

import signal


def main() -> None:
    """Run the command line.

    Ctrl-C ends the process at once until a verb has something to clean up or to save: an exception
    raised while torch is imported would be lost in its C++ code, or abort it.
    """
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # not ignored, as by nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lookback.benchmarks.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()
