"""The lines of a traceback as they were. Pure.

E2B's server joins the lines between the parts of a traceback. So `1/0` comes as

    ----…----ZeroDivisionError      Traceback (most recent call last)Cell In[1], line 1
    ----> 1 1/0
    ZeroDivisionError: division by zero

and leaves as

    ----…----
    ZeroDivisionError               Traceback (most recent call last)
    Cell In[1], line 1
    ----> 1 1/0
    ZeroDivisionError: division by zero
"""

import re

# Where two lines are joined.
_JOINT = (
    r"(?<=-{75})(?=\w)"  # `-----ZeroDivisionError`
    r"|(?<=recent call last\))(?=Cell |File )"  # `… last)Cell In[2], line 1`
    r"|(?<=:)(?=-{75})"  # `… another exception occurred:-----`
    r"|(?<=due dynamically evaluated source code\.')(?=\w)"  # `….'File index.pyx:167`
)


def split_headings(traceback: str) -> str:
    """Give each heading that E2B's server joined to another a line of its own."""
    return re.sub(_JOINT, "\n", traceback)


def split_notes(traceback: str, error: str) -> str:
    """Give what E2B's server joined to the error a line of its own: its notes."""
    frames, found, notes = traceback.rpartition(error)
    if not found or not notes.strip():
        return traceback
    return f"{frames}{found}\n{notes}"
