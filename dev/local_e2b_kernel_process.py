"""The process that the stand-in's kernels are forked from, and what runs in each.

Its source is handed to `python -c`, so that a kernel has nothing of this folder. It has
imported what a kernel needs, which takes ten times as long as all the rest of a start.
On stdin comes a JSON line for each kernel that is wanted; on stdout goes "started PID"
for each, in that order, and "ended PID" once it has ended. At the end of stdin it ends,
and its kernels with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import tempfile
from typing import Any

import ipykernel.debugger  # noqa: F401 - each kernel does, at its start
import IPython
import orjson
import zmq
from ipykernel.kernelapp import IPKernelApp
from IPython.core.formatters import BaseFormatter, JSONFormatter
from IPython.display import display
from PIL import Image, ImageShow
from traitlets import ObjectName, Unicode
from traitlets.config import Config

# <sched.h> and <sys/mount.h>
CLONE_NEWNS = 0x00020000
MS_BIND = 4096


# pandas and matplotlib take seconds to import: as on E2B, that is left to the code.
class DataFormatter(BaseFormatter):
    format_type = Unicode("e2b/data")
    print_method = ObjectName("_repr_e2b_data_")
    _return_type = (dict, str)

    def __call__(self, value: Any) -> Any:
        pandas = sys.modules.get("pandas")
        if not pandas or not isinstance(value, pandas.DataFrame):
            return super().__call__(value)

        def plain(cell: Any) -> Any:
            return cell.isoformat() if isinstance(cell, pandas.Timestamp) else cell

        columns = value.to_dict(orient="list")
        return {name: [plain(x) for x in cells] for name, cells in columns.items()}


class ChartFormatter(BaseFormatter):
    format_type = Unicode("e2b/chart")
    print_method = ObjectName("_repr_e2b_chart_")
    _return_type = (dict, str)

    def __call__(self, value: Any) -> Any:
        if "matplotlib" not in sys.modules:
            return super().__call__(value)
        from matplotlib.figure import Figure

        if not isinstance(value, Figure):
            return super().__call__(value)
        from e2b_charts import chart_figure_to_dict  # type: ignore[import-untyped]

        try:
            return chart_figure_to_dict(value)
        except Exception:
            return {}


class CollectionFormatter(JSONFormatter):
    def __call__(self, value: Any) -> Any:
        if isinstance(value, (list, dict)):
            options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
            with contextlib.suppress(TypeError):
                return orjson.loads(orjson.dumps(value, option=options)), {
                    "expanded": True
                }
        return super().__call__(value)


# In the caller's namespace: a caller may give `display` another meaning.
SHOW_WHAT_IS_SAVED = """
def save(image, fp, format=None, **params):
    if isinstance(fp, str):
        display(image)
    original_save(image, fp, format, **params)

Image.save = save
"""


class KernelApp(IPKernelApp):
    def init_iopub(self, context: Any) -> None:
        # Without a limit: a queue that is full drops output.
        context.setsockopt(zmq.SNDHWM, 0)
        super().init_iopub(context)  # type: ignore[no-untyped-call]


def run_kernel(connection_file: str) -> None:
    """ipykernel, set up as E2B's startup scripts set it up."""
    config = Config()
    config.InteractiveShell.colors = "NoColor"
    app = KernelApp.instance(config=config)
    app.initialize(["-f", connection_file])  # type: ignore[no-untyped-call]
    shell: Any = app.shell
    formatters = shell.display_formatter.formatters
    for formatter in (DataFormatter, ChartFormatter, CollectionFormatter):
        made = formatter(parent=shell.display_formatter)
        formatters[made.format_type] = made

    # What else can show a picture depends on the machine's programs.
    ImageShow._viewers[:] = [ImageShow.IPythonViewer()]
    # E2B's startup scripts run in the caller's namespace, and leave these names behind.
    shell.user_ns.update(sys=sys, IPython=IPython, ip=shell, Image=Image.Image)
    shell.user_ns.update(display=display, original_save=Image.Image.save)
    exec(SHOW_WHAT_IS_SAVED, shell.user_ns)  # noqa: S102
    app.start()  # type: ignore[no-untyped-call]


def become_a_kernels_process(wanted: dict[str, Any]) -> None:
    """In the child: what `subprocess` would do for a process of its own."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for kept, number in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(kept, number)
    os.close(nothing)
    os.close(log)
    # What has been read ahead is of the parent's.
    sys.stdin = open(0)  # noqa: SIM115
    os.environ.update(wanted["environment"])
    tempfile.tempdir = None  # the parent may have looked for it already
    os.chdir(wanted["directory"])
    if wanted["mnt"]:
        mount_over_mnt(wanted["mnt"])


def mount_over_mnt(folder: str) -> None:
    """A /mnt that other kernels do not see; the parent is allowed to mount already."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_ulong(MS_BIND)
    if libc.unshare(CLONE_NEWNS) or libc.mount(
        folder.encode(), b"/mnt", None, flags, None
    ):
        raise OSError(ctypes.get_errno(), f"{folder} could not be mounted over /mnt")


def wait_until_forked() -> dict[str, Any] | None:
    """Fork a child for each line of stdin. Returns in the
    child, with what is wanted of it, or at the end: None."""
    running: set[int] = set()

    def report_the_ended(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                running.discard(pid)
                os.write(1, b"ended %d\n" % pid)

    signal.signal(signal.SIGCHLD, report_the_ended)
    for line in sys.stdin:
        wanted: dict[str, Any] = json.loads(line)
        # Or one could be said to have ended before it is said to have started.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        # By both: its group is there for whoever learns of it, and for what it starts.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        if not pid:
            return wanted
        running.add(pid)
        os.write(1, b"started %d\n" % pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    for pid in running.copy():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    return None


def main() -> None:
    wanted = wait_until_forked()
    if wanted:
        become_a_kernels_process(wanted)
        run_kernel(wanted["connection_file"])


if __name__ == "__main__":
    main()
