"""`python -m penstock.cli.child PARENT MODULE ARGUMENTS…` runs a module as a child that never outlives its parent.

It is told so from within, before the module is imported: the parent may by then have threads, beside which nothing may
be done between fork and exec.
"""

import os
import runpy
import signal
import sys
import threading


def main() -> None:
    """Bind this process to its parent, then become the module."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    _die_with(parent)
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    else:
        # The other end of standard input belongs to the parent alone, so that it ends with it.
        threading.Thread(target=_kill_at_end_of_input, name="parent", daemon=True).start()
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _kill_at_end_of_input() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
