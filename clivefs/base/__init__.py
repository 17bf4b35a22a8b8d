"""What every other package stands on: errors, ports to the outside world, Linux calls.

May import the standard library and nothing of ours.
"""
