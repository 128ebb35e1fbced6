"""Reward files of other trainers: `hardsample export` copies each beside the data of its trainer."""
