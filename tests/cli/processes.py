"""Which processes there are, as `ps` tells on any system."""

import asyncio
import os
import subprocess


def children_of(pid: int) -> dict[str, int]:
    """The process ids of the services that this process started, by module."""
    listed = subprocess.run(["ps", "-axwwo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    ours = [(int(row[0]), row[2].split()) for row in rows if len(row) == 3 and int(row[1]) == pid]
    return {
        words[words.index("penstock.cli.child") + 2]: child for child, words in ours if "penstock.cli.child" in words
    }


def is_running(pid: int) -> bool:
    """Whether this process has not ended; a zombie has."""
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(listed.strip()) and not listed.startswith("Z")


async def all_ended(pids: list[int], seconds_max: float = 20) -> bool:
    """Whether these processes end within that time."""
    for _ in range(int(seconds_max / 0.05)):
        if not any(map(is_running, pids)):
            return True
        await asyncio.sleep(0.05)
    return False


def kill(pid: int, number: int) -> None:
    """Send a signal."""
    os.kill(pid, number)
