"""Time to import the core, next to NumPy's: the core imports no framework."""


class Import:
    repeat = 5

    def timeraw_numpy(self) -> str:
        return "import numpy"

    def timeraw_nullport(self) -> str:
        return "import nullport"
