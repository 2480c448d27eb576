"""What ``gpu.py`` measures on a device, in parts that are run one after another and can be resumed.

``models``, ``timing``: shapes of known networks, and a clock that waits for the device.
``correct``, ``figures``, ``training``: the parts, functions that yield rows.
``parts``, ``journal``, ``page``: their list, what has been measured, the page that is written.
"""
