"""One line that saves a turn, where an error is one of a few that are well known. Pure.

It is said only where it is sure: of a package that can be installed, of a network that
the settings forbid, of a file of the chat, which does not come here."""

import re

from run import Run

# Modules that models import and E2B's template lacks, whose packages have their names:
# wheels of PyPI's that need nothing else.
_INSTALLABLE = {
    "altair",
    "catboost",
    "duckdb",
    "faker",
    "folium",
    "geopandas",
    "ipywidgets",
    "lightgbm",
    "mplfinance",
    "networkx",
    "pdfplumber",
    "plotnine",
    "polars",
    "pypdf",
    "pyvis",
    "qrcode",
    "reportlab",
    "rich",
    "shap",
    "squarify",
    "statsmodels",
    "tabulate",
    "tiktoken",
    "wordcloud",
    "xgboost",
    "xlsxwriter",
    "yfinance",
}
# Those whose packages have other names.
_PACKAGES = {
    "Bio": "biopython",
    "PyPDF2": "pypdf2",
    "docx": "python-docx",
    "fitz": "pymupdf",
    "fpdf": "fpdf2",
    "pptx": "python-pptx",
    "umap": "umap-learn",
    "yaml": "pyyaml",
}
# Of Python's, and of pandas' for a package that it needs for one thing.
_NO_MODULE = r"No module named '(\w+)'|Missing optional dependency '(\w+)'\..*"
# A file right in the folder: writing one there would have made it.
_NO_FILE = r"\[Errno 2\] No such file or directory: '(/mnt/data/[^/']+)'"
# What a host's name, or a route to it, that is not found is called.
_NO_HOST = (
    r"Name or service not known|Temporary failure in name resolution"
    r"|No address associated with hostname|Network is unreachable|No route to host"
)
_MAX_VALUE_CHARS = 2_000  # of an error: longer ones are none of these


def add_hint(run: Run, *, has_network: bool) -> None:
    """Add a line to a run's stderr, if its error is one for which there is a hint."""
    hint = _hint(run.error_name, run.error_value[:_MAX_VALUE_CHARS], has_network)
    if hint:
        separator = "\n" if run.stderr.kept else ""
        run.stderr.add(f"{separator}Hint: {hint}.\n")


def _hint(name: str, value: str, has_network: bool) -> str:
    """What helps with an error of this name and value, "" if nothing is sure to."""
    if name in ("ModuleNotFoundError", "ImportError"):
        found = re.fullmatch(_NO_MODULE, value)
        module = (found[1] or found[2]) if found else ""
        package = module if module in _INSTALLABLE else _PACKAGES.get(module)
        if not package:
            return ""
        if has_network:
            return (
                f"{module} is not installed here; a line `%pip install -q {package}`"
                " before the imports, in the same call, installs it"
            )
        return f"{module} is not installed here, and there is no network to get it from"
    if name == "FileNotFoundError":
        found = re.fullmatch(_NO_FILE, value)
        if not found:
            return ""
        return (
            f"{found[1]} is not here: files of the chat do not come to this tool."
            " Put what they hold into the code"
        )
    if not has_network and re.search(_NO_HOST, value):
        return "there is no network here, so that nothing can be loaded"
    return ""
