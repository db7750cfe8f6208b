"""What Outrider costs, measured against what the machine can do at the same moment.

`python -m benchmarks NAME --json` runs one benchmark and ends with one JSON object on its last line. Read a figure
together with the raw limits beside it: machines drift, ratios hold.
"""
