"""Private names of other libraries, and patches of them: each behind a function with a public name, in a module for
each library.
"""
