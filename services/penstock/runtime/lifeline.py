"""Ends a process group together with the process that stands over it, however that one ends.

A small shell in the group waits for the end of a pipe whose other end only the process above holds. It is no child of
the program, which may wait for all of its children, and it holds none of the program's descriptors.
"""

from typing import Final

# Begins the watch over descriptor 3. What is sent to the whole group, to end it politely, must not end the watch.
WATCH: Final = (
    "(trap '' HUP INT QUIT PIPE ALRM TERM USR1 USR2; "
    "(while read -r _ <&3; do :; done; kill -KILL 0) </dev/null >/dev/null 2>&1 &)"
)
