"""Rules for the texts of a caller's code and of its run. All of them are pure.

These modules import nothing but each other and a few modules of the standard library,
as a test checks. So an auditor of the service need not read them."""
