"""How fast, against a plain restatement of the reference path: `mirl bench`."""
