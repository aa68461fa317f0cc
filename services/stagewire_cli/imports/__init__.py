"""Reads gateways and peers out of other programs' files, for `stagewire import`.

- sources: opens a file and finds out whose it is
- found, fields: what all of them are turned into, and how doubtful values are read
- wg_easy, wg_portal, wg_conf: one module for each program
"""
