"""LibreChat's code interpreter: what LIBRECHAT_CODE_BASEURL speaks to.

`store` keeps files, `sweeper` bounds how many, `upload` takes them in, `request` and
`reply` are the two sides of an exec, `cells` turns one into cells of code, which run
in_sandbox/script.py, `report` reads what comes back, `execute` holds them together.
Knows neither Flask nor the SDK.
"""
