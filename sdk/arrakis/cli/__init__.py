"""The command ``arrakis``.

What a command needs (the SDK, rich) is imported when it runs: ``arrakis --help`` pays for
click and nothing else.
"""
