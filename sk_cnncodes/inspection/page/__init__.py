"""The HTML report: one page with everything in it, for browsers and notebooks.

What stands where is in `templates`; what is shown there, in `sections`.
"""
